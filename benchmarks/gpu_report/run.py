"""A run of one section: its settings, its notes, and whether a case may be measured."""

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
    """The settings of a run of one section, and its notes.

    out: the report's folder. deadline: a value of ``time.monotonic()``. dry: run on tiny shapes, time nothing and write
    no row. quick: fewer cases. left_out: cases without time for them. withheld: what is not measured because its tests
    are red, with the reason. failures: reasons.
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
        """The folder of the section's rows."""
        return self.out / self.section.name

    @property
    def device(self) -> torch.device:
        """The device to measure; the CPU in a dry run."""
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.monotonic()

    def may_measure(self, case: str, name: str | None = None) -> bool:
        """Whether there is time for a case and no test of `name` is red; otherwise the reason is noted."""
        if name and (reasons := gate.failed_checks(self.out, name)):
            if (note := f"{name}: {'; '.join(reasons)}") not in self.withheld:
                self.withheld.append(note)
            return False
        if self.seconds_left < 0:
            self.left_out.append(case)
            return False
        return True

    def new_row(self, kind: str) -> dict[str, object]:
        """The fields that every row has (:func:`benchmarks.report.new_row`)."""
        arguments = ["--section", self.section.name] + ["--quick"] * self.quick
        return report.new_row(kind, "-m benchmarks.gpu_report", arguments, self.device)
