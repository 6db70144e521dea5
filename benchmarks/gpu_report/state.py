"""The files of a report's folder: for each section a log, its rows, and how it ended (section.json)."""

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
    mode: "measured", or "dry" where nothing was timed. quick: with fewer cases.
    left_out: cases for which there was no time. withheld: what is not measured because its tests are red.
    failures: reasons.
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
        """Whether it is done, nothing failed and nothing was withheld."""
        return self.status == "done" and not (self.withheld or self.failures)

    def stands_for(self, mode: str, *, quick: bool) -> bool:
        """Whether this state makes another run in this mode unnecessary; a full run also counts for a quick one."""
        return self.fine and self.mode == mode and (quick or not self.quick)

    def write(self, out: Path) -> None:
        """Store the state in the section's folder."""
        (out / self.section).mkdir(parents=True, exist_ok=True)
        files.write_json(out / self.section / STATE, asdict(self))


def read(out: Path, section: str) -> State | None:
    """How a section ended; None where it has not run in this report."""
    path = out / section / STATE
    return State(**json.loads(path.read_text())) if path.exists() else None


def rows(out: Path, section: str) -> Iterator[dict]:
    """The rows that a section has written, in the order of their files."""
    for path in sorted((out / section).glob("*.json")):
        if path.name not in (STATE, FILE):
            yield json.loads(path.read_text())
