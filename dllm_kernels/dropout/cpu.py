"""Dropout on the CPU: calls csrc/dropout.cpp."""

from __future__ import annotations

import torch
from torch import Tensor


def dropout(x: Tensor, threshold: int, seed: Tensor) -> Tensor:
    """y of the shape of x; arguments as in the reference."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel():
        torch.ops.dllm_kernels.dropout(x.contiguous(), seed, threshold, out)
    return out
