"""Alignment on the CPU: calls csrc/align_tokens.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels.align_tokens.api import BLANK


def align_tokens(x0: Tensor, x0_length: Tensor, x1: Tensor, x1_length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z0, z1 [B, N + M] and length [B]; arguments as in the public function, already checked."""
    z0, z1 = x0.new_full((2, len(x0), x0.shape[1] + x1.shape[1]), BLANK)
    length = torch.empty_like(x0_length, memory_format=torch.contiguous_format)
    torch.ops.dllm_kernels.align_tokens(
        x0.contiguous(), x0_length.contiguous(), x1.contiguous(), x1_length.contiguous(), z0, z1, length
    )
    return z0, z1, length
