"""How many tokens a step commits: the schedules of the published samplers, as plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dllm.core.schedulers import BaseAlphaScheduler
from dllm_kernels import philox


def even_counts(masks: int, steps: int) -> list[int]:
    """k_i = m // S + (1 if i < m mod S else 0), i = 0..S-1, without zeros at the end (LLaDA, the model cards).

    Example:
        >>> even_counts(10, 4), even_counts(2, 3)
        ([3, 3, 2, 2], [1, 1])
    """
    share, rest = divmod(masks, steps)
    return [share + (i < rest) for i in range(steps) if share or i < rest]


def transfer_probabilities(steps: int, scheduler: BaseAlphaScheduler) -> list[float]:
    """For j = 0..S-1 the probability that what is masked at t = (S-j) / S is not at s = (S-j-1) / S:

    p = 1 - (1 - alpha(s)) / (1 - alpha(t)), the quotient in float32, the difference in float64.

    Halves are common among m p, so that the arithmetic is part of the rule.

    Example:
        >>> from dllm.core.schedulers import LinearAlphaScheduler
        >>> transfer_probabilities(2, LinearAlphaScheduler())
        [0.5, 1.0]
    """
    left = torch.arange(steps, -1, -1, dtype=torch.float32) / steps
    return [1 - masked for masked in scheduler.reverse_mask_prob(left[1:], left[:-1]).tolist()]


def scheduled_counts(
    masks: int, probabilities: Sequence[float], draw: Callable[[int, int, float], int] | None = None
) -> list[int]:
    """k_j = round(m p_j), at most m, halves to even; m -= k_j; zeros left out (dLLM 0.1).

    Args:
        masks: m at first.
        probabilities: p_j of the steps.
        draw: instead of rounding, the number that step j takes of m, each with probability p_j: draw(j, m, p_j).

    Example:
        >>> from dllm.core.schedulers import LinearAlphaScheduler
        >>> scheduled_counts(10, transfer_probabilities(4, LinearAlphaScheduler()))
        [2, 3, 2, 3]
    """
    counts = []
    for j, p in enumerate(probabilities):
        count = round(masks * p) if draw is None else draw(j, masks, p)
        count = min(max(count, 0), masks)
        masks -= count
        if count:
            counts.append(count)
    return counts


def binomial_draws(seed: int, column: int) -> Callable[[int, int, float], int]:
    """draw(j, m, p): how many of m coins show heads, coin i a uniform number below p.

    Coin i of step j has the address (seed, block 1, position column + i, step j) in the stream of random confidences
    (:mod:`dllm_kernels.philox`), with `column` the first of the block: so a row draws the same in any batch.

    Example:
        >>> binomial_draws(7, 0)(0, 100, 1.0)
        100
    """

    def draw(step: int, coins: int, p: float) -> int:
        def number(value: int) -> torch.Tensor:
            return torch.tensor(value, dtype=torch.int64)

        position = column + torch.arange(coins)
        first = philox.words(number(seed), number(1), position, number(step), philox.RANDOM_CONFIDENCE)[0]
        return int((philox.unit_interval(first) < p).sum())

    return draw


def time_grid_probabilities(steps: int, epsilon: float) -> list[float]:
    """1 - s / t for neighbouring times of linspace(1, epsilon, S + 1), float32; the last one 1 (Dream).

    Example:
        >>> [round(p, 3) for p in time_grid_probabilities(2, 1e-3)]
        [0.499, 1.0]
    """
    times = torch.linspace(1, epsilon, steps + 1, dtype=torch.float32)
    return [*(1 - times[1:-1] / times[:-2]).tolist(), 1.0]


def time_grid_counts(masks: int, probabilities: Sequence[float]) -> list[int]:
    """k_i = int(m p_i), a float32 product, m -= k_i; zeros left out (Dream).

    Example:
        >>> time_grid_counts(10, time_grid_probabilities(4, 1e-3))
        [2, 2, 2, 4]
    """
    counts = []
    for p in probabilities:
        count = int(torch.tensor(float(masks)) * p)
        masks -= count
        if count:
            counts.append(count)
    return counts
