"""Sampling from a head, and the mean of its rows, in eager PyTorch: the specification. Formulae: `api.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels._linear import by_blocks
from dllm_kernels.gumbel_argmax.reference import gumbel_argmax
from dllm_kernels.linear_gumbel_argmax.reference import head_logits
from dllm_kernels.logits import STATISTICS_TEMPERATURES, as_numbers


def linear_expected_embedding(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    softcap: float | None = None,
    rows: Tensor | None = None,
    count: Tensor | None = None,
    suppress: Tensor | None = None,
    temperature: Tensor | None = None,
    tempered: bool = False,
    **noise: Tensor | None,
) -> tuple[Tensor, ...]:
    """token, log_prob, margin, neg_entropy, lse, argmax, embedding; arguments as in the public function, checked.

    Products and probabilities are float32 whatever the dtype, and float64 of float64: that is the truth of the tests.

    Example:
        >>> head = torch.eye(2, dtype=torch.float64)
        >>> linear_expected_embedding(torch.zeros(1, 2, dtype=torch.float64), head)[-1]
        tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """
    logits = head_logits(hidden, weight, bias, softcap, rows)
    found = gumbel_argmax(logits, temperature, **noise, suppress=suppress, tempered=tempered, count=count)
    l = as_numbers(logits)
    if suppress is not None:
        l = l.masked_fill(suppress, -torch.inf)
    if tempered and temperature is not None:
        T = torch.where(temperature > 0, temperature.clamp(*STATISTICS_TEMPERATURES), 1.0).to(l.dtype)
        l = (l - l.amax(-1, keepdim=True)) / T[:, None]
    p = torch.where((found[0] >= 0)[:, None], l.softmax(-1), 0.0)
    embedding = by_blocks(lambda p: p @ weight.to(p.dtype), p)
    return *found, embedding.to(weight.dtype)
