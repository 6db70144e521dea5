"""Chosen experts on the CPU: calls csrc/swiglu_experts.cpp."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.register_fake("dllm_kernels::swiglu_experts")
def _(
    hidden: Tensor,
    gate_up: Tensor,
    down: Tensor,
    index: Tensor,
    weights: Tensor,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
    out: Tensor,
) -> None:
    """Nothing but `out` changes: what torch.compile needs to know."""


def swiglu_experts(
    hidden: Tensor,
    gate_up: Tensor,
    down: Tensor,
    index: Tensor,
    weights: Tensor,
    gate_up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
) -> Tensor:
    """[T, H] of the dtype of `hidden`; arguments as in the public function, already checked, `weights` float32."""
    hidden = hidden if hidden.stride(-1) == 1 else hidden.contiguous()
    given = gate_up, down, index, weights, gate_up_scale, down_scale
    adjacent = [None if x is None else x.contiguous() for x in given]
    out = torch.empty(hidden.shape, dtype=hidden.dtype)
    if index.numel() == 0:
        return out.zero_()
    torch.ops.dllm_kernels.swiglu_experts(hidden, *adjacent, out)
    return out
