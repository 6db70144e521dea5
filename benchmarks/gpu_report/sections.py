"""The sections of the report in their order, and the plans that choose among them. Imports the standard library.

What matters most comes first, and whatever compiles for long comes last.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

SAMPLING_OPS = ("gumbel_argmax", "linear_gumbel_argmax", "transfer_tokens", "position_noise", "truncation_floor")
LOSS_OPS = ("masked_cross_entropy", "linear_cross_entropy")


class Section(NamedTuple):
    """A part of the report that runs in a process of its own.

    module: of this package; its ``items(name, dry=...)`` are what the section does, `AT_ONCE` of them at a time, after
    ``prepare()``.
    opt_in: whether it runs only where it is named.
    """

    name: str
    module: str
    opt_in: bool = False


SECTIONS = (
    Section("kernels", "kernels"),  # begins with the machine's ceilings
    Section("kernel-tests", "checks"),
    Section("sampling", "programs"),
    Section("program-tests", "checks"),
    Section("training", "programs"),
    Section("sampling-more", "programs"),
    Section("samplers", "programs"),
    Section("cached", "programs"),
    Section("kernels-compiled", "kernels"),
    Section("sampling-compiled", "programs"),
    Section("compiled-tests", "checks"),
    Section("sanitizer", "checks", opt_in=True),
)
NAMES = tuple(section.name for section in SECTIONS)
EVERYTHING = tuple(section.name for section in SECTIONS if not section.opt_in)
# plan: its sections, and the seconds that it may take
PLANS: dict[str, tuple[tuple[str, ...], int]] = {
    "first": (("kernels", "kernel-tests"), 240),
    "second": (("sampling", "program-tests"), 300),
    "all": (EVERYTHING, 780),
}


def chosen(names: Sequence[str]) -> list[Section]:
    """The sections of these names, in the order of the report.

    Raises:
        ValueError: there is no such section.

    Example:
        >>> [section.name for section in chosen(["training", "kernels"])]
        ['kernels', 'training']
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(f"sections must be among {', '.join(NAMES)}, got {', '.join(unknown)}")
    return [section for section in SECTIONS if section.name in names]


def module_of(name: str) -> ModuleType:
    """The module of a section."""
    return importlib.import_module(f"benchmarks.gpu_report.{chosen([name])[0].module}")
