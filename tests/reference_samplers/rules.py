"""Which of the eligible positions are committed. Ties go to the lowest position; NaN counts as -inf.

Every rule also tells its gap: how far, in float32 ulp, the step was from committing other positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps
FAR = float("inf")


class Confidence(NamedTuple):
    """What positions are ranked by, [L]: in float32, which decides, and in float64, which tells near ties."""

    value: Tensor
    exact: Tensor


class Choice(NamedTuple):
    positions: list[int]
    gap: float


def ulps(a: float, b: float) -> float:
    """Distance in float32 ulp of the larger number, of 1 at least; infinite numbers are never near.

    Example:
        >>> ulps(0.5, 0.5 + 2**-22), ulps(-float("inf"), -float("inf"))
        (2.0, inf)
    """
    scale = max(abs(a), abs(b), 1.0)
    return FAR if scale == FAR else abs(a - b) / (EPS * scale)


def surest(confidence: Confidence, eligible: list[int], k: int) -> Choice:
    """The k surest."""
    order = _surest_first(confidence, eligible)
    return Choice(order[:k], _gap_at(confidence, order, k))


def at_least(
    log_probability: Confidence, eligible: list[int], threshold: float, *, k: int = 1, strictly: bool = False
) -> Choice:
    """All with probability c >= threshold (c > threshold if strictly), and at least the k surest."""
    order = _surest_first(log_probability, eligible)
    c, bar = log_probability.value.exp(), torch.tensor(threshold, dtype=torch.float32)
    n = sum(bool(c[p] > bar) if strictly else bool(c[p] >= bar) for p in order)
    gap = min((ulps(float(log_probability.exact[p].exp()), threshold) for p in order), default=FAR)
    if n < k:
        gap = min(gap, _gap_at(log_probability, order, k))
    return Choice(order[: max(n, k)], gap)


def by_factor(log_probability: Confidence, eligible: list[int], factor: float) -> Choice:
    """The longest prefix of c_1 >= c_2 >= ... with c_r >= 1 - factor / (r + 1), and at least the surest."""
    order = _surest_first(log_probability, eligible)
    c, gap, n = log_probability.value.exp(), FAR, 0
    for rank, p in enumerate(order, start=1):
        bar = 1 - torch.tensor(factor, dtype=torch.float32) / (rank + 1)
        gap = min(gap, ulps(float(log_probability.exact[p].exp()), float(bar)))
        if c[p] < bar:
            break
        n = rank
    n = max(n, 1)
    return Choice(order[:n], min(gap, _gap_at(log_probability, order, n)))


def within_budget(neg_entropy: Confidence, eligible: list[int], gamma: float) -> Choice:
    """By entropy, ascending, as long as the summed entropy of those before is at most gamma."""
    order = _surest_first(neg_entropy, eligible)
    spent, spent64, gap, n = 0.0, 0.0, FAR, 0
    for p in order:
        if n > 0:
            gap = min(gap, ulps(spent64, gamma))
        if spent > gamma:
            break
        n += 1
        spent -= float(neg_entropy.value[p])
        spent64 -= float(neg_entropy.exact[p])
    return Choice(order[:n], min(gap, _gap_at(neg_entropy, order, n)))


def _surest_first(confidence: Confidence, eligible: list[int]) -> list[int]:
    value = confidence.value.nan_to_num(nan=-torch.inf, neginf=-torch.inf, posinf=torch.inf)
    return sorted(eligible, key=lambda p: -float(value[p]))  # stable: ties stay left to right


def _gap_at(confidence: Confidence, order: list[int], k: int) -> float:
    """Between the last that is taken and the first that is not."""
    if not 0 < k < len(order):
        return FAR
    return ulps(float(confidence.exact[order[k - 1]]), float(confidence.exact[order[k]]))
