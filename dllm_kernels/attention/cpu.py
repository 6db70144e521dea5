"""Attention on the CPU: calls csrc/attention.cpp."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.register_fake("dllm_kernels::attention")
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, out: Tensor) -> None:
    """Nothing but `out` changes: what torch.compile needs to know."""


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """[B, heads, L, d] of the dtype of `query`, in memory [B, L, heads, d]; arguments checked as in the public one."""
    batch, heads, length, width = query.shape
    out = query.new_empty(batch, length, heads, width).transpose(1, 2)
    if out.numel() > 0:
        torch.ops.dllm_kernels.attention(query, key, value, mask, scale, out)
    return out


@torch.library.register_fake("dllm_kernels::packed_attention")
def _(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, window: int | None, scale: float, out: Tensor) -> None:
    """As above."""


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, window: int | None, scale: float
) -> Tensor:
    """[1, heads, T, d] of the dtype of `query`, in memory [1, T, heads, d]; arguments checked as in the public one."""
    _, heads, tokens, width = query.shape
    out = query.new_empty(1, tokens, heads, width).transpose(1, 2)
    torch.ops.dllm_kernels.packed_attention(query, key, value, ends, window, scale, out)
    return out
