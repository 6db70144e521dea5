"""How many rows each mask size gets, where the sum over masks is estimated.

A size x contributes W_x E f(S), where E is the mean over masks of that size and W_x is about 1 / x: a mean over the x
masked tokens. The rows that a size gets are those that lower the summed variance sd_x^2 / n_x most (Neyman's
allocation), with the standard deviation taken as

.. math::
    sd_x = x^{-1/4} \\sqrt{1 - x / n}

Small masks vary more, as means over fewer tokens. But the part of it that belongs to single positions cancels, since
masks are spread evenly over positions, so it falls slower than x^(-1/2). At x = n there is one mask, read once.
On targets of 12 tokens of the bundled model, with 128 rows, the exponents 0 and 1/4 gave about the same variance, and
two thirds of that of 1/2 and 3/4. The published estimator's was 3 to 17 times as large.

Every size gets two rows, to tell its variance, unless it has one mask. A size with few masks gets no more than those,
and is then enumerated. Where there are more sizes than half the rows, neighbouring sizes form one stratum, and each
stratum has about the same summed sd. Its rows take different sizes of it at random. The differences between sizes then
count as variance (collapsed strata), so the standard error is rather too large.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from typing import NamedTuple

EXPONENT = 0.25  # of the size, in its standard deviation


class Stratum(NamedTuple):
    """Mask sizes that are sampled together.

    sizes: neighbouring sizes; most often one.
    rows: masks that are drawn, each of a random one of the sizes.
    masks: how many there are, infinity where there are several sizes.

    Example:
        >>> Stratum(range(1, 2), rows=4, masks=4).sizes[0]
        1
    """

    sizes: range
    rows: int
    masks: float


@functools.lru_cache(maxsize=1024)
def allocate(n: int, rows: int) -> tuple[Stratum, ...]:
    """The strata of the sizes 1..n for so many rows, fewer than there are masks.

    Example:
        >>> [(stratum.sizes.start, stratum.rows) for stratum in allocate(4, 10)]
        [(1, 4), (2, 3), (3, 2), (4, 1)]
        >>> [list(stratum.sizes) for stratum in allocate(10, 6)]
        [[1, 2], [3, 4], [5, 6, 7, 8, 9, 10]]
    """
    groups = _groups(n, n if rows >= 2 * n - 1 else max(1, rows // 2))
    masks = [math.comb(n, sizes[0]) if len(sizes) == 1 else math.inf for sizes in groups]
    spread = [sum(_deviation(x, n) for x in sizes) for sizes in groups]
    given = [int(min(2, number, rows)) for number in masks]
    gains = [(-_gain(sd, count), group) for group, (sd, count) in enumerate(zip(spread, given, strict=True))]
    gains = [item for item in gains if given[item[1]] < masks[item[1]]]
    heapq.heapify(gains)
    for _ in range(rows - sum(given)):
        _, group = heapq.heappop(gains)
        given[group] += 1
        if given[group] < masks[group]:
            heapq.heappush(gains, (-_gain(spread[group], given[group]), group))
    return tuple(map(Stratum, groups, given, masks))


def _deviation(size: int, n: int) -> float:
    """The standard deviation that a size is expected to have, up to a factor."""
    return size**-EXPONENT * math.sqrt(1 - size / n)


def _gain(deviation: float, rows: int) -> float:
    """By how much one row more lowers the variance deviation^2 / rows."""
    return deviation**2 * (1 / rows - 1 / (rows + 1))


def _groups(n: int, count: int) -> list[range]:
    """The sizes 1..n in at most `count` groups of neighbours, with about the same summed deviation each."""
    total, summed, numbers = sum(_deviation(x, n) for x in range(1, n + 1)), 0.0, []
    if count == n or total == 0:
        return [range(x, x + 1) for x in range(1, n + 1)]
    for x in range(1, n + 1):
        middle = summed + _deviation(x, n) / 2
        summed += _deviation(x, n)
        numbers.append(min(int(middle / total * count), count - 1))
    found, start = [], 1
    for _, members in itertools.groupby(numbers):
        length = sum(1 for _ in members)
        found.append(range(start, start + length))
        start += length
    return found
