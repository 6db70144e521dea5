"""A linear layer in 8 bits on the CPU: calls csrc/int8_linear.cpp."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.register_fake("dllm_kernels::int8_linear")
def _(hidden: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Nothing but `out` changes: what torch.compile needs to know."""


def int8_linear(hidden: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """[N, V] of the dtype of `hidden`; arguments as in the public function, already checked."""
    out = hidden.new_empty(len(hidden), len(weight))
    if out.numel() > 0:
        torch.ops.dllm_kernels.int8_linear(hidden, weight, scale, bias, out)
    return out
