"""The head and the sampling of its logits on the CPU: calls csrc/linear_gumbel_argmax.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels.gumbel_argmax.cpu import adjacent, outputs
from dllm_kernels.linear_gumbel_argmax import sliced

BLOCK_R = 512
WHOLE_ROWS = 64  # with top_k or top_p, which need a row's whole vocabulary


def linear_gumbel_argmax(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    unconditional: Tensor | None = None,
    cfg_scale: float = 0.0,
    rows: Tensor | None = None,
    count: Tensor | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    **options: Tensor | bool | None,
) -> tuple[Tensor, ...]:
    """token, log_prob, margin, neg_entropy, lse, argmax; arguments as in the public function, already checked.

    `options` are those of :func:`dllm_kernels.gumbel_argmax.cpu.gumbel_argmax`, without those given here.
    """
    hidden = sliced.choose(hidden, unconditional, cfg_scale, rows)
    head = (hidden, weight, bias, count)
    if top_k is not None or top_p is not None:
        return sliced.by_rows(*head, WHOLE_ROWS, impl="cpu", top_k=top_k, top_p=top_p, **options)

    def reduce(rows: slice, count: Tensor | None, options: dict) -> tuple[Tensor, ...]:
        return _by_tokens(hidden[rows], weight, bias, count=count, **options)

    return sliced.by_blocks(len(hidden), BLOCK_R, count, options, reduce)


def _by_tokens(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: Tensor | None = None,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    step: Tensor | None = None,
    suppress: Tensor | None = None,
    begin_suppress: Tensor | None = None,
    tempered: bool = False,
    softcap: float | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The results of a block of rows."""
    out = outputs(len(hidden), hidden.device)
    noise = (temperature, seeds, positions, step)
    flags = (adjacent(suppress), adjacent(begin_suppress))
    torch.ops.dllm_kernels.linear_gumbel_argmax(hidden, weight, bias, *noise, *flags, tempered, softcap, count, *out)
    return out
