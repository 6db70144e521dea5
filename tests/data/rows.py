"""Conversations and texts for files of the tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def talk(number: int) -> dict[str, Any]:
    """A question with a number, and its answer."""
    return {"messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": f"{number}."}]}


def write(path: Path, rows: Iterable[Any]) -> str:
    """The rows, an object a line; the path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(rows: Iterable[Any]) -> list[int]:
    """The numbers in the questions."""
    return [int(row["messages"][0]["content"][:-1]) for row in rows]
