"""Atomic writes: a program that is stopped while it writes leaves no half-written file."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON to a temporary name in the same folder, which no other thread takes, then rename it to
    `path`."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def read_json(path: Path) -> object:
    """What :func:`write_json` wrote."""
    return json.loads(path.read_text())
