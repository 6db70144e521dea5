"""How many of a block's m masks each step commits."""

from __future__ import annotations

import torch

from dllm.core.schedulers import BaseAlphaScheduler
from dllm_kernels import philox
from tests.reference_loop import schedule as schedule_a

__all__ = ["schedule_a", "schedule_b", "time_grid"]


def schedule_b(m: int, steps: int, scheduler: BaseAlphaScheduler, *, seed: int | None = None, start: int = 0):
    """Counts of the steps that commit something.

    Step j leads from t = (S-j)/S to s = (S-j-1)/S and takes round(m p) of the m masks that are left, halves to even,
    p = 1 - (1 - alpha(s)) / (1 - alpha(t)). Halves are common, so the arithmetic is part of the rule: times, alpha and
    the quotient are float32, 1 - quotient and m p are float64. With a seed the count is Binomial(m, p) instead, its
    coins addressed by (seed, start + i, j).

    Example:
        >>> from dllm.core.schedulers import LinearAlphaScheduler
        >>> schedule_b(10, 4, LinearAlphaScheduler()), schedule_b(1, 4, LinearAlphaScheduler())
        ([2, 3, 2, 3], [1])
    """

    def masked(time: float) -> torch.Tensor:
        return 1 - scheduler.alpha(torch.tensor(time, dtype=torch.float32))

    counts = []
    for j in range(steps):
        t, s = (steps - j) / steps, (steps - j - 1) / steps
        p = 1 - float(masked(s) / masked(t))
        k = round(m * p) if seed is None else _binomial(m, p, seed=seed, start=start, step=j)
        counts.append(min(k, m))
        m -= counts[-1]
    return [k for k in counts if k > 0]


def time_grid(steps: int, eps: float) -> list[float]:
    """Dream's probability to leave the mask at each step: 1 - s/t on linspace(1, eps, S + 1), float32; 1 at the last.

    Example:
        >>> [round(p, 4) for p in time_grid(3, 0.1)]
        [0.3, 0.4286, 1.0]
    """
    times = torch.linspace(1, eps, steps + 1)
    return [*(1 - times[1:-1] / times[:-2]).tolist(), 1.0]


def _binomial(m: int, p: float, *, seed: int, start: int, step: int) -> int:
    address = torch.tensor(philox.as_int64(seed)), torch.tensor(1), start + torch.arange(m), torch.tensor(step)
    word = philox.words(*address, philox.RANDOM_CONFIDENCE)[0]
    u = ((word >> 9).double() + 0.5) * 2.0**-23
    return int((u < p).sum())
