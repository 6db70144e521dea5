"""Chosen experts on the CPU: calls csrc/swiglu_experts.cpp."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.register_fake("dllm_kernels::swiglu_experts")
def _(hidden: Tensor, gate_up: Tensor, down: Tensor, index: Tensor, weights: Tensor, out: Tensor) -> None:
    """Nothing but `out` changes: what torch.compile needs to know."""


def swiglu_experts(hidden: Tensor, gate_up: Tensor, down: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """[T, H] of the dtype of `hidden`; arguments as in the public function, already checked, `weights` float32."""
    hidden = hidden if hidden.stride(-1) == 1 else hidden.contiguous()
    gate_up, down, index, weights = (x.contiguous() for x in (gate_up, down, index, weights))
    out = torch.empty(hidden.shape, dtype=hidden.dtype)
    if index.numel() == 0:
        return out.zero_()
    torch.ops.dllm_kernels.swiglu_experts(hidden, gate_up, down, index, weights, out)
    return out
