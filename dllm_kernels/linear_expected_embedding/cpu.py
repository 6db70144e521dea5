"""Sampling from a head, and the mean of its rows, on the CPU: calls csrc/linear_expected_embedding.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels.gumbel_argmax.cpu import adjacent, outputs
from dllm_kernels.linear_gumbel_argmax import sliced

BLOCK_R = 256  # rows whose sums exist at a time


def linear_expected_embedding(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    rows: Tensor | None = None,
    count: Tensor | None = None,
    **options: Tensor | bool | float | None,
) -> tuple[Tensor, ...]:
    """token, log_prob, margin, neg_entropy, lse, argmax, embedding; arguments as in the public function, already
    checked."""
    hidden = sliced.choose(hidden, None, 0.0, rows)

    def reduce(rows: slice, count: Tensor | None, options: dict) -> tuple[Tensor, ...]:
        return _by_parts(hidden[rows], weight, bias, count=count, **options)

    return sliced.by_blocks(len(hidden), BLOCK_R, count, options, reduce)


def _by_parts(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: Tensor | None = None,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    step: Tensor | None = None,
    suppress: Tensor | None = None,
    tempered: bool = False,
    softcap: float | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The results of a block of rows."""
    out = (*outputs(len(hidden), hidden.device), torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device))
    noise = (temperature, seeds, positions, step)
    torch.ops.dllm_kernels.linear_expected_embedding(
        hidden, weight, bias, *noise, adjacent(suppress), tempered, softcap, count, *out
    )
    return out
