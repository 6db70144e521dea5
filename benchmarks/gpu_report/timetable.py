"""What would run when: the seconds that sections and their items take, and how a call's seconds are shared.

Seconds are reckoned until a GPU has measured them: then they come from the states of the reports in benchmarks/results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import report
from benchmarks.gpu_report import state
from benchmarks.gpu_report.items import MARGIN, Item, may_start
from benchmarks.gpu_report.sections import NAMES, Section, module_of
from benchmarks.gpu_report.state import DONE

STARTUP = 10.0  # reckoned: torch, transformers and CUDA in a new process
BEGIN = 5.0  # reckoned: seconds until a call starts its first section
LEAST = 20.0  # seconds: a section gets no less, and does not start with less
END = 8.0  # seconds that a call keeps for its summary and plots
SHOWN = 3  # names of items that a line shows
Todo = Mapping[Section, Sequence[Item]]


class Durations:
    """The seconds of items and of the start of sections: measured where there is a report, else reckoned."""

    def __init__(self, out: Path, results: Path = report.RESULTS):
        self.startup: dict[str, float] = {}
        self.measured: dict[tuple[str, str], float] = {}
        for folder in [*sorted(results.glob("*/")), out]:
            for name in NAMES:
                found = state.read(folder, name)
                if found and found.mode == "measured":
                    self.startup[name] = found.startup
                    self.measured |= {(name, item): each.seconds for item, each in found.having(DONE).items()}

    def of(self, section: str, items: Sequence[Item]) -> dict[str, float]:
        """The expected seconds of a section's items."""
        return {item.name: self.measured.get((section, item.name), item.seconds) for item in items}

    def run(self, section: str, items: Sequence[Item], most: float = float("inf")) -> tuple[float, list[str]]:
        """The seconds that a section takes of `most`, and the items that are left out or cut off."""
        at_once, last = module_of(section).AT_ONCE, most * (1 - MARGIN)
        workers, missing = [self.startup.get(section, STARTUP)] * at_once, []
        for number, (name, expected) in enumerate(self.of(section, items).items()):
            turn = workers.index(min(workers))
            if workers[turn] + expected > last:
                missing.append(name)
            if may_start(number, at_once, last - workers[turn], expected):
                workers[turn] = min(workers[turn] + expected, last)
        return max(workers), missing

    def share(self, todo: Todo, left: float) -> float:
        """The seconds of the first of these sections: what it needs, or in proportion more where more is left.

        Where less is left, the last sections miss it; 0 where it cannot start.
        """
        needed = [self.run(section.name, items)[0] / (1 - MARGIN) for section, items in todo.items()]
        return min(left, max(LEAST, needed[0] * max(1.0, left / sum(needed)))) if left >= LEAST else 0.0


class Slot(NamedTuple):
    """When a section would run, in seconds from the beginning, and which items would be left out or cut off.

    items: how many it has. measured: for how many of them the seconds were measured.
    """

    section: str
    begin: float
    end: float
    items: int
    measured: int
    left_out: list[str]


def plan(todo: Todo, seconds: float, durations: Durations) -> list[Slot]:
    """The timetable of a call that has so many seconds for these sections and items."""
    todo, slots, now = {section: items for section, items in todo.items() if items}, [], BEGIN
    while todo:
        section, items = next(iter(todo.items()))
        most = durations.share(todo, seconds - END - now)
        taken, left_out = durations.run(section.name, items, most) if most else (0.0, [item.name for item in items])
        measured = sum((section.name, item.name) in durations.measured for item in items)
        slots.append(Slot(section.name, now, now + taken, len(items), measured, left_out))
        now += taken
        del todo[section]
    return slots


def told(slots: Sequence[Slot], seconds: float) -> str:
    """The timetable in words."""
    lines = [f"{'from':>5} {'to':>5}  {'section':18} items  seconds"]
    for slot in slots:
        known = {0: "reckoned", slot.items: "measured"}.get(slot.measured, f"{slot.measured} measured, others reckoned")
        lines.append(f"{slot.begin:5.0f} {slot.end:5.0f}  {slot.section:18} {slot.items:5}  {known}")
        if slot.left_out:
            shown = "; ".join(slot.left_out[:SHOWN]) + "; ..." * (len(slot.left_out) > SHOWN)
            lines.append(f"{'':13}left out or cut off: {len(slot.left_out)} ({shown})")
    missing, end = sum(len(slot.left_out) for slot in slots), max((slot.end for slot in slots), default=0.0)
    lines.append(f"{missing} items do not fit: repeat the command" if missing else "Everything fits")
    lines[-1] += f"; {end:.0f} of {seconds:.0f} s, and {END:.0f} s for the summary."
    return "\n".join(lines)
