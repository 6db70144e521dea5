"""Masks as the authors of LLaDA and Dream, and dLLM 0.1, draw them; only the random stream is ours.

LLaDA, for each batch of b rows: k is uniform on 1..n, and row i masks a uniform set of size

.. math::
    x_i = 1 + (round(k + i \\frac{(b - 1)\\, n / b}{b - 1}) - 1) \\bmod n

where `round` takes halves to the even neighbour. So sizes are not uniform: n = 2, b = 32 gives 15 rows of size 1 and 17
of size 2, whatever k is. The row counts n / x_i. Steps are computed in float32 by `torch.linspace`, as published.

Dream, for each batch of b rows: u is uniform on (0, 1) and row i has t = (u + i / b) mod 1 and p = (1 - eps) t + eps.
Each token is masked with probability p, by itself. The row counts 1 / p; it may mask nothing.
"""

from __future__ import annotations

import torch

from dllm.core.likelihood.masks import Mask, random_keys

# purposes of random numbers
_FIRST, _POSITIONS = 0, 1


def sizes(k: int, n: int, batch: int) -> list[int]:
    """LLaDA's mask sizes of a batch that begins at k.

    Example:
        >>> drawn = sizes(1, n=2, batch=32)
        >>> drawn.count(1), drawn.count(2)
        (15, 17)
    """
    steps = torch.linspace(float(k), k + (batch - 1) * (n / batch), steps=batch)
    return ((torch.round(steps).long() - 1) % n + 1).tolist()


def draw(
    form: str, n: int, seed: int, *, mc_num: int, batch: int, eps: float
) -> tuple[tuple[Mask, ...], tuple[float, ...]]:
    """`mc_num` masks of n positions and their weights, for a target's seed.

    Example:
        >>> masks, weights = draw("llada", 3, 0, mc_num=4, batch=2, eps=0.0)
        >>> [len(mask) * weight * 4 for mask, weight in zip(masks, weights)]
        [3.0, 3.0, 3.0, 3.0]
    """
    batches = mc_num // batch
    first = _uniform(random_keys(seed, range(batches), 1, _FIRST))[:, 0].tolist()
    keys = random_keys(seed, range(mc_num), n, _POSITIONS)
    if form == "llada":
        order = keys.argsort(dim=1, stable=True).tolist()
        drawn = [x for u in first for x in sizes(1 + int(u * n), n, batch)]
        masks = tuple(tuple(sorted(row[:x])) for row, x in zip(order, drawn, strict=True))
        return masks, tuple(n / x / mc_num for x in drawn)
    times = [(1 - eps) * ((u + i / batch) % 1) + eps for u in first for i in range(batch)]
    masked = _uniform(keys) < torch.tensor(times).double()[:, None]
    masks = tuple(tuple(row.nonzero().flatten().tolist()) for row in masked)
    return masks, tuple(1 / (p * mc_num) for p in times)


def _uniform(keys: torch.Tensor) -> torch.Tensor:
    """Numbers in [0, 1), float64, from integers of 63 bits."""
    return (keys >> 10).double() * 2.0**-53
