"""The files of a report's folder: for each section a log, its rows, and what became of its items (section.json)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import files, machine

STATE = "section.json"
DONE, FAILED, LEFT_OUT, RUNNING = "done", "failed", "left out", "running"


@dataclass(slots=True)
class Result:
    """What became of an item.

    status: DONE; FAILED, with the reasons; LEFT_OUT, where the time ended first; RUNNING, also where it was killed.
    sources: the fingerprint of the code that ran. rows: names of the files that it wrote. ended: when, in seconds since
    1970.
    """

    status: str
    seconds: float = 0.0
    why: list[str] = field(default_factory=list)
    sources: str = ""
    rows: list[str] = field(default_factory=list)
    ended: float = 0.0


@dataclass(slots=True)
class State:
    """How a section stands. It is written after each item, so that a section that is killed has lost one item.

    mode: "measured", or "dry" where nothing was timed. startup: seconds until the first item. seconds: of all its
    runs. reason: why its last run ended too soon.
    """

    section: str
    mode: str
    startup: float = 0.0
    seconds: float = 0.0
    reason: str = ""
    commit: str | None = None
    items: dict[str, Result] = field(default_factory=dict)

    @property
    def fine(self) -> bool:
        """Whether every item is done: none failed, and none was left out."""
        return bool(self.items) and all(result.status == DONE for result in self.items.values())

    def having(self, *statuses: str) -> dict[str, Result]:
        """The items with one of these statuses."""
        return {name: result for name, result in self.items.items() if result.status in statuses}

    def write(self, out: Path) -> None:
        """Store the state in the section's folder."""
        (out / self.section).mkdir(parents=True, exist_ok=True)
        files.write_json(out / self.section / STATE, asdict(self))


def read(out: Path, section: str) -> State | None:
    """How a section stands; None where it has not run in this report."""
    path = out / section / STATE
    if not path.exists():
        return None
    stored = json.loads(path.read_text())
    return State(**stored | {"items": {name: Result(**each) for name, each in stored["items"].items()}})


def in_mode(out: Path, section: str, *, dry: bool) -> State:
    """The state of a section in a dry run or in a measured one, empty where it has none."""
    mode, found = "dry" if dry else "measured", read(out, section)
    return found if found and found.mode == mode else State(section, mode)


def row_files(folder: Path) -> list[Path]:
    """The files of a section's rows, the oldest first."""
    return sorted(path for path in folder.glob("*.json") if path.name != STATE)


def rows(out: Path, section: str) -> Iterator[dict]:
    """The rows of a section, the oldest first."""
    for path in row_files(out / section):
        yield json.loads(path.read_text())


def drop_replaced(folder: Path) -> None:
    """Delete rows of which a newer one has the same kind and settings; one with an error replaces none without."""
    best: dict[str, tuple[bool, Path]] = {}
    for path in row_files(folder):
        row = json.loads(path.read_text())
        key = json.dumps([row["kind"], row.get("settings")], sort_keys=True)
        good = "error" not in row and not any("error" in each for each in row.get("providers", {}).values())
        if key in best and best[key][0] > good:
            path.unlink()
            continue
        if key in best:
            best[key][1].unlink()
        best[key] = (good, path)


def sources() -> str:
    """A fingerprint of the code under test: `dllm`, `dllm_kernels` and the C++ sources.

    Example:
        >>> len(sources())
        16
    """
    digest = hashlib.sha256()
    for folder, pattern in (("dllm", "*.py"), ("dllm_kernels", "*.py"), ("csrc", "*.[ch]*")):
        for file in sorted((machine.ROOT / folder).rglob(pattern)):
            digest.update(f"{file.relative_to(machine.ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
