"""What lies in a report's folder: for each section a log, its rows, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import files

STATE, FILE = "section.json", "checks.json"


@dataclass(slots=True)
class State:
    """How a section ended.

    status: "done"; "failed", with the reason; "withheld", where tests are red.
    mode: "measured", or "dry" where everything ran but the timing. quick: with fewer cases.
    left_out: cases for which there was no time. withheld: what is not reported because its tests are red.
    failures: what went wrong beside it.
    """

    section: str
    status: str
    mode: str
    quick: bool
    seconds: float = 0.0
    reason: str = ""
    commit: str | None = None
    left_out: list[str] = field(default_factory=list)
    withheld: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        return self.status == "done" and not (self.withheld or self.failures)

    def stands_for(self, mode: str, *, quick: bool) -> bool:
        """Whether a run in this mode need not run the section again: a whole one stands for a quick one, too."""
        return self.fine and self.mode == mode and (quick or not self.quick)

    def write(self, out: Path) -> None:
        (out / self.section).mkdir(parents=True, exist_ok=True)
        files.write_json(out / self.section / STATE, asdict(self))


def read(out: Path, section: str) -> State | None:
    """How a section ended; None where it has not run here."""
    path = out / section / STATE
    return State(**json.loads(path.read_text())) if path.exists() else None


def rows(out: Path, section: str) -> Iterator[dict]:
    """The rows that a section has written, in the order of their files."""
    for path in sorted((out / section).glob("*.json")):
        if path.name not in (STATE, FILE):
            yield json.loads(path.read_text())
