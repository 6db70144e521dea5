"""Schedules of the published samplers: how many tokens each step commits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from dllm.core.schedulers import BaseAlphaScheduler
from dllm_kernels import philox
from dllm_kernels.transfer_tokens.api import MAX_WINDOW

MAX_STEPS = 2 * MAX_WINDOW  # of a block, where each is written down; a block has at most MAX_WINDOW tokens to commit


def check_steps(steps: int) -> int:
    """Check how many steps a block takes, before they are written down, and return it.

    Raises:
        ValueError: more than MAX_STEPS.

    Example:
        >>> check_steps(10**9)
        Traceback (most recent call last):
        ...
        ValueError: a block must take at most 16384 steps, got 1000000000
    """
    if steps > MAX_STEPS:
        raise ValueError(f"a block must take at most {MAX_STEPS} steps, got {steps}")
    return steps


def even_counts(masks: int, steps: int) -> list[int]:
    """Counts of an even schedule: k_i = m // S + (1 if i < m mod S else 0), i = 0..S-1, without zeros at the end.

    Source: LLaDA (arXiv:2502.09992) and the model cards.

    Example:
        >>> even_counts(10, 4), even_counts(2, 3)
        ([3, 3, 2, 2], [1, 1])
    """
    share, rest = divmod(masks, steps)
    return [share + (i < rest) for i in range(steps if share else rest)]  # steps may be far more than masks


def transfer_probabilities(steps: int, scheduler: BaseAlphaScheduler) -> list[float]:
    """For steps j = 0..S-1, the probability that a token masked at t = (S-j) / S is unmasked at s = (S-j-1) / S:

    p = 1 - (1 - alpha(s)) / (1 - alpha(t)), the quotient in float32, the difference in float64.

    The precision is part of the rule: many products m p lie halfway between two integers, where rounding decides.

    Raises:
        ValueError: more than MAX_STEPS.

    Example:
        >>> from dllm.core.schedulers import LinearAlphaScheduler
        >>> transfer_probabilities(2, LinearAlphaScheduler())
        [0.5, 1.0]
    """
    left = torch.arange(check_steps(steps), -1, -1, dtype=torch.float32) / steps
    return [1 - masked for masked in scheduler.reverse_mask_prob(left[1:], left[:-1]).tolist()]


def scheduled_counts(
    masks: int, probabilities: Sequence[float], draw: Callable[[int, int, float], int] | None = None
) -> list[int]:
    """Counts that follow a scheduler: k_j = round(m p_j), halves to even, at most m; then m -= k_j. Zeros are left out.

    Args:
        masks: m before the first step.
        probabilities: p_j of the steps.
        draw: draw(j, m, p_j) gives k_j instead of rounding.

    Source: dLLM 0.1.

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
    """A function draw(j, m, p) that draws from Binomial(m, p): how many of m uniform numbers are below p.

    Number i of step j has the address (seed, block 1, position column + i, step j) in the stream of random confidences
    (:mod:`dllm_kernels.philox`), where `column` is the first of the block. So a row draws the same in any batch.

    Example:
        >>> binomial_draws(7, 0)(0, 100, 1.0)
        100
    """

    def draw(step: int, trials: int, p: float) -> int:
        def int64(value: int) -> torch.Tensor:
            return torch.tensor(value, dtype=torch.int64)

        position = column + torch.arange(trials)
        words = philox.words(int64(seed), int64(1), position, int64(step), philox.RANDOM_CONFIDENCE)
        return int((philox.unit_interval(words[0]) < p).sum())

    return draw


def time_grid_probabilities(steps: int, epsilon: float) -> list[float]:
    """1 - s / t for neighbouring times t > s of linspace(1, epsilon, S + 1), float32; the last is 1 (Dream).

    Raises:
        ValueError: more than MAX_STEPS.

    Example:
        >>> [round(p, 3) for p in time_grid_probabilities(2, 1e-3)]
        [0.499, 1.0]
    """
    times = torch.linspace(1, epsilon, check_steps(steps) + 1, dtype=torch.float32)
    return [*(1 - times[1:-1] / times[:-2]).tolist(), 1.0]


def time_grid_counts(masks: int, probabilities: Sequence[float]) -> list[int]:
    """Counts of Dream's schedule: k_i = int(m p_i), a float32 product; then m -= k_i. Zeros are left out.

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


def falling_counts(masks: int, steps: int) -> list[int]:
    """Counts that leave int(m s / S) tokens masked after the step with s steps to go, s = S-1..0. Zeros are left out.

    The product of m and the quotient s / S is float32, which is part of the rule: 75 * (42 / 50) gives 62.

    Raises:
        ValueError: more than MAX_STEPS.

    Source: `diffusion_sample` of RND1.

    Example:
        >>> falling_counts(10, 4), falling_counts(2, 3)
        ([3, 2, 3, 2], [1, 1])
    """
    left = [masks, *(int(torch.tensor(float(masks)) * (s / steps)) for s in range(check_steps(steps) - 1, -1, -1))]
    return [before - after for before, after in itertools.pairwise(left) if before > after]
