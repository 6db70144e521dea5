"""A performance target: a bound for what rows have measured, its formula, and whether the worst case meets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

Rows = Sequence[dict]
HEAD = ("target", "formula", "goal", "measured, worst case", "")


class Measured(NamedTuple):
    """A value, the case that it was measured on, and its row."""

    value: float
    where: str
    row: dict


class Target(NamedTuple):
    """A bound for measured values.

    values: takes all rows and yields the values that the target is about; the worst one counts. at_most: whether the
    bound is an upper one.
    """

    what: str
    formula: str
    bound: float
    values: Callable[[Rows], Iterator[Measured]]
    at_most: bool = False

    @property
    def aim(self) -> str:
        """The bound in words."""
        return f"{'at most' if self.at_most else 'at least'} {self.bound:g}"


class Verdict(NamedTuple):
    """A target, its worst case (None where nothing was measured) and whether it was met."""

    target: Target
    worst: Measured | None
    met: bool | None

    @property
    def word(self) -> str:
        """The verdict in words."""
        return "not measured" if self.met is None else "met" if self.met else "missed"

    @property
    def cells(self) -> list[str]:
        """The verdict as a line of a table whose columns are :data:`HEAD`."""
        worst = f"{self.worst.value:.2f} ({self.worst.where})" if self.worst else "-"
        return [self.target.what, self.target.formula.replace("|", "\\|"), self.target.aim, worst, self.word]


def verdict(target: Target, rows: Rows) -> Verdict:
    """Whether the worst case meets the target."""
    found = sorted(target.values(rows), key=lambda each: each.value, reverse=target.at_most)
    if not found:
        return Verdict(target, None, None)
    worst = found[0]
    return Verdict(target, worst, worst.value <= target.bound if target.at_most else worst.value >= target.bound)
