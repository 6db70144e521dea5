"""Files that are there whole or not at all: whoever is stopped while writing leaves none that cannot be read."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_json(path: Path, value: object) -> None:
    """Write aside, under a name that nobody looks for, then rename."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    aside.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(aside, path)
