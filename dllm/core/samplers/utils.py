"""Functions of a hand-written sampling loop, under dLLM 0.1's names."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm.core.samplers.schedules import scheduled_counts, transfer_probabilities
from dllm.core.schedulers import BaseAlphaScheduler
from dllm_kernels import _checks


def add_gumbel_noise(logits: Tensor, temperature: float) -> Tensor:
    r"""Scores whose argmax is a draw from softmax(logits / temperature): exp(l) / (-ln u)^T, in float64.

    Draws from torch's generator; at temperature 0 returns the logits. This is for hand-written loops. The samplers of
    this library use :func:`dllm_kernels.gumbel_argmax`, which makes no float64 scores.

    Args:
        logits: [..., V].
        temperature: at least 0.

    Raises:
        ValueError: the temperature is below 0 or not finite.

    Source: the sampling loop of LLaDA (arXiv:2502.09992).

    Example:
        >>> add_gumbel_noise(torch.tensor([0.0, 1.0]), 0.0)
        tensor([0., 1.])
        >>> add_gumbel_noise(torch.tensor([0.0, 1.0]), 1.0).dtype
        torch.float64
    """
    if _checks.finite_at_least_zero("temperature", temperature) == 0:
        return logits
    logits = logits.to(torch.float64)
    return logits.exp() / (-torch.rand_like(logits).log()) ** temperature


def get_num_transfer_tokens(
    mask_index: Tensor, steps: int, scheduler: BaseAlphaScheduler, stochastic: bool = False
) -> Tensor:
    """How many tokens each row commits at each step, k_j = round(m p_j), where m tokens are still masked.

    Args:
        mask_index: bool [B, L], the masked tokens.
        steps: at least 1.
        scheduler: alpha(t).
        stochastic: draw k_j from Binomial(m, p_j) instead, with torch's generator.

    Returns:
        int64 [B, steps], without the steps that commit nothing; shorter rows end in zeros.

    Raises:
        TypeError, ValueError: an argument breaks a rule above.

    Example:
        >>> from dllm.core.schedulers import LinearAlphaScheduler
        >>> get_num_transfer_tokens(torch.ones(1, 10, dtype=torch.bool), 4, LinearAlphaScheduler())
        tensor([[2, 3, 2, 3]])
    """
    _checks.tensor("mask_index", mask_index, dtypes=(torch.bool,), shape=("B", "L"))
    if _checks.int64("steps", steps) < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")

    def draw(step: int, masks: int, p: float) -> int:
        return int((torch.rand(masks) < p).sum())

    probabilities = transfer_probabilities(steps, scheduler)
    rows = [scheduled_counts(m, probabilities, draw if stochastic else None) for m in mask_index.sum(1).tolist()]
    longest = max((len(row) for row in rows), default=0)
    padded = [row + [0] * (longest - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.int64, device=mask_index.device).view(len(rows), longest)
