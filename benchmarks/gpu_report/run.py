"""A run of one section: what it is given, whether a case may be measured, and the notes it takes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.gpu_report import gate
from benchmarks.gpu_report.sections import Section


@dataclass(slots=True)
class Run:
    """What a section is given, and what it notes.

    out: the report's folder. deadline: a value of ``time.monotonic()``. dry: run everything but the timing, on tiny
    shapes, and write no row. quick: fewer cases.
    """

    section: Section
    out: Path
    deadline: float
    dry: bool = False
    quick: bool = False
    left_out: list[str] = field(default_factory=list)
    withheld: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Where the section's rows lie."""
        return self.out / self.section.name

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def may_measure(self, case: str, name: str | None = None) -> bool:
        """Whether there is time for a case and no test of `name` is red; what speaks against it is noted."""
        if name and (reasons := gate.red(self.out, name)):
            if (note := f"{name}: {'; '.join(reasons)}") not in self.withheld:
                self.withheld.append(note)
            return False
        if self.seconds_left < 0:
            self.left_out.append(case)
            return False
        return True

    def new_row(self, kind: str) -> dict[str, object]:
        """What every row has."""
        arguments = ["--section", self.section.name] + ["--quick"] * self.quick
        return report.new_row(kind, "-m benchmarks.gpu_report", arguments, self.device)
