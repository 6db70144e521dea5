"""Covering arrays: of a grid of cases those few in which every combination of `strength` values still occurs.

Faults of code with several options nearly always need one or two of them; all combinations of more are what
`make test-all` is for.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence


def covering(cases: Sequence[Mapping[str, Hashable]], strength: int) -> list[int]:
    """Indices, in order, of cases in which every combination of `strength` values that occurs in all does occur.

    Greedy: next comes the case with the most combinations that are still missing, the first of several.

    Args:
        cases: values by parameter, the same parameters in all.
        strength: 1, each value of each parameter; 2, each pair of values of two parameters; and so on.

    Example:
        >>> grid = [dict(a=a, b=b, c=c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
        >>> covering(grid, 1), covering(grid, 2)
        ([0, 7], [0, 3, 5, 6])
    """
    combinations = [set(itertools.combinations(sorted(case.items()), min(strength, len(case)))) for case in cases]
    missing = set().union(*combinations)
    kept = []
    while missing:
        best = max(range(len(cases)), key=lambda i: len(combinations[i] & missing))
        missing -= combinations[best]
        kept.append(best)
    return sorted(kept)
