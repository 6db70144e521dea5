"""What a section consists of: items, each a case, a call or a check, and the session in which they run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import report

MARGIN = 0.08  # share of a section's seconds after which its items end, so that it can end by itself


class OutOfTime(Exception):
    """An item was stopped at the deadline: nothing is known about it."""


@dataclass(slots=True)
class Session:
    """A run of one section.

    out: the report's folder. deadline: a value of ``time.monotonic()``. dry: run on tiny shapes, time nothing and write
    no row. rehearsed: what a dry run need not run again.
    """

    section: str
    out: Path
    deadline: float
    dry: bool = False
    rehearsed: set[object] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        """The folder of the section's rows."""
        return self.out / self.section

    @property
    def device(self) -> torch.device:
        """The device to measure; the CPU in a dry run."""
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.monotonic()

    def new_row(self, kind: str) -> dict[str, object]:
        """The fields that every row has (:func:`benchmarks.report.new_row`)."""
        return report.new_row(kind, "-m benchmarks.gpu_report", ["--section", self.section], self.device)


class Item(NamedTuple):
    """A part of a section that is done or not.

    seconds: reckoned, until a GPU has measured it. run: does it and returns the reasons of its failure, none for a
    success; raises :class:`OutOfTime` where it was stopped.
    """

    name: str
    seconds: float
    run: Callable[[Session], list[str]]


def may_start(number: int, at_once: int, seconds_left: float, expected: float) -> bool:
    """Whether an item may start: the first ones always, later ones where half of their time is left.

    Example:
        >>> may_start(0, 1, 2.0, 30.0), may_start(1, 1, 2.0, 30.0), may_start(1, 1, 20.0, 30.0)
        (True, False, True)
    """
    return number < at_once or seconds_left >= expected / 2
