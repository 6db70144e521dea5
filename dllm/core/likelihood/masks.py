"""Drawing masks: sets of positions of given sizes, spread evenly over the positions, none of them twice.

Masks are cut from a sequence of random permutations of the positions, one after the other, so that at any time the
numbers of masks that hold each position differ by at most one. A mask that reaches into the next permutation takes from
there the first positions that it lacks, and its other positions come last in that permutation. A mask that was there
before is skipped.

All of this treats positions alike: relabelling the positions of the permutations relabels the masks. So each mask is
uniform among the sets of its size, although no set is drawn twice, and a mean over the masks is an unbiased estimate.
(The symmetry shows this; the masks are not independent.)

Random numbers are Philox words (:mod:`dllm_kernels.philox`, stream LIKELIHOOD_MASKS) with the target's seed as key.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from dllm_kernels import philox

Mask = tuple[int, ...]

_AT_A_TIME = 8  # permutations, where more are needed than was expected


def random_keys(seed: int, rows: Sequence[int], columns: int, purpose: int | Sequence[int]) -> Tensor:
    """Random integers of 63 bits, int64 [rows, columns]; each depends on seed, purpose, row and column alone.

    purpose: of all rows, or of each.

    Example:
        >>> a, b = random_keys(7, [0, 1], 3, purpose=0), random_keys(7, [1], 2, purpose=0)
        >>> bool((a[1, :2] == b[0]).all())
        True
    """
    purposes = [purpose] * len(rows) if isinstance(purpose, int) else purpose
    row, block = (torch.tensor(list(numbers), dtype=torch.int64)[:, None] for numbers in (rows, purposes))
    key = torch.tensor(philox.as_int64(seed))
    first, second, *_ = philox.words(key, block, torch.arange(columns), row, philox.LIKELIHOOD_MASKS)
    return (first << 31) | (second >> 1)


def permutations(seed: int, rows: Sequence[int], n: int, purpose: int | Sequence[int] = 0) -> list[list[int]]:
    """A random permutation of 0..n-1 for each of `rows`.

    Example:
        >>> [sorted(p) for p in permutations(7, [0, 5], 3)]
        [[0, 1, 2], [0, 1, 2]]
    """
    return random_keys(seed, rows, n, purpose).argsort(dim=1, stable=True).tolist()


def even_masks(n: int, sizes: Sequence[Sequence[int]], seed: int) -> list[list[Mask]]:
    """Groups of different masks of given sizes; the masks of a group are spread evenly over n positions.

    Args:
        n: positions.
        sizes: of the masks of each group, each from 1 to n. Where a group has one size, there must be as many
            different masks of it.
        seed: of the target.

    Example:
        >>> (masks,) = even_masks(6, [[3, 3, 2, 2, 2]], seed=1)
        >>> sorted(i for mask in masks for i in mask)
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    """
    counts = [sum(group) // n + 2 for group in sizes]  # permutations that each group may need
    rows = [row for count in counts for row in range(count)]
    orders = iter(permutations(seed, rows, n, [number for number, count in enumerate(counts) for _ in range(count)]))
    groups = []
    for number, (group, count) in enumerate(zip(sizes, counts, strict=True)):
        groups.append(_group(n, group, list(itertools.islice(orders, count)), seed, number))
    return groups


def _group(n: int, sizes: Sequence[int], orders: list[list[int]], seed: int, purpose: int) -> list[Mask]:
    """The masks of a group; `orders` are its first permutations."""
    orders = itertools.chain(orders, _more(n, len(orders), seed, purpose))
    if len(set(sizes)) > 1:
        return list(_cut(orders, sizes))
    left_out = math.comb(n, sizes[0]) - len(sizes)
    if left_out >= len(sizes):
        return _different(orders, sizes)
    missing = set(_different(orders, sizes[:left_out]))  # if those are spread evenly, so are the others
    return [mask for mask in itertools.combinations(range(n), sizes[0]) if mask not in missing]


def _different(orders: Iterator[list[int]], sizes: Sequence[int]) -> list[Mask]:
    """Different masks of one size. One that was there before is skipped, so counts may differ by more than one."""
    found: dict[Mask, None] = {}
    masks = _cut(orders, itertools.cycle(sizes))
    while len(found) < len(sizes):
        found[next(masks)] = None
    return list(found)


def _more(n: int, start: int, seed: int, purpose: int) -> Iterator[list[int]]:
    """The permutations of a group from number `start` on."""
    for first in itertools.count(start, _AT_A_TIME):
        yield from permutations(seed, range(first, first + _AT_A_TIME), n, purpose)


def _cut(orders: Iterator[list[int]], sizes: Iterable[int]) -> Iterator[Mask]:
    """Masks of the given sizes, cut one after the other from permutations."""
    rest: list[int] = []
    for size in sizes:
        mask, rest = rest[:size], rest[size:]
        if len(mask) < size:
            held = set(mask)
            order = [i for i in next(orders) if i not in held]
            lacking = size - len(mask)
            rest = order[lacking:] + mask
            mask = mask + order[:lacking]
        yield tuple(sorted(mask))
