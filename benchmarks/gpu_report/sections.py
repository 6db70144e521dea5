"""The sections of the report, in the order in which they run. Imports the standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

SAMPLING_OPS = ("gumbel_argmax", "linear_gumbel_argmax", "transfer_tokens", "position_noise", "truncation_floor")
LOSS_OPS = ("masked_cross_entropy", "linear_cross_entropy")
SECONDS = 540  # of a whole report
QUICK = 3  # a quick report divides the time of every section but the tests by this


class Section(NamedTuple):
    """A part of the report that runs in a separate process.

    seconds: its time limit, to which unused seconds of other sections are added.
    run: "module:function" in this package, called with a :class:`benchmarks.gpu_report.run.Run`.
    needs: names of :data:`benchmarks.gpu_report.gate.FILES` whose tests must not be red.
    whole: whether one red name withholds the whole section; otherwise only the cases of that name.
    only_dry: whether it runs only on machines without a GPU.
    """

    name: str
    seconds: int
    run: str
    needs: tuple[str, ...] = ()
    whole: bool = True
    only_dry: bool = False

    def limit(self, *, quick: bool) -> float:
        """Its time limit in seconds, without unused seconds of other sections."""
        return self.seconds / QUICK if quick and self.name != "tests" else self.seconds


SECTIONS = (
    Section("tests", 135, "checks:run"),
    Section("ceilings", 15, "ceilings:run"),
    Section("kernels-sampling", 65, "kernels:run", SAMPLING_OPS, whole=False),
    Section("kernels-loss", 60, "kernels:run", LOSS_OPS, whole=False),
    Section("sampling-modernbert", 65, "programs:run", (*SAMPLING_OPS, "sampling")),
    Section("sampling-8b", 70, "programs:run", (*SAMPLING_OPS, "sampling")),
    Section("sampling-samplers", 25, "programs:run", (*SAMPLING_OPS, "sampling")),
    Section("sampling-cached", 25, "programs:run", (*SAMPLING_OPS, "sampling")),
    Section("training", 30, "programs:run", (*LOSS_OPS, "training")),
    # last: compiling takes long and may use all seconds that are left over
    Section("sampling-compiled", 50, "programs:run", (*SAMPLING_OPS, "sampling")),
    Section("static", 0, "static:run", only_dry=True),
)
NAMES = tuple(section.name for section in SECTIONS)
GROUPS = tuple(dict.fromkeys(name.partition("-")[0] for name in NAMES))
ONCE = "ceilings"  # measured with every other measurement, which is reported as a share of it


def chosen(names: Sequence[str] | None) -> list[Section]:
    """The sections of these names or groups (such as "kernels"), and the ceilings where anything is measured.

    None: all sections.

    Raises:
        ValueError: there is no such section.

    Example:
        >>> [section.name for section in chosen(["kernels"])]
        ['ceilings', 'kernels-sampling', 'kernels-loss']
    """
    if names is None:
        return list(SECTIONS)
    if unknown := [name for name in names if name not in NAMES + GROUPS]:
        raise ValueError(f"sections must be among {', '.join((*NAMES, *GROUPS))}, got {', '.join(unknown)}")
    asked = {section for section in SECTIONS if section.name in names or section.name.partition("-")[0] in names}
    measures = any(section.needs for section in asked)
    return [section for section in SECTIONS if section in asked or (measures and section.name == ONCE)]
