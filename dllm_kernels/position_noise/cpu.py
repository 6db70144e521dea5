"""Noise of positions on the CPU: calls csrc/position_noise.cpp."""

from __future__ import annotations

import torch
from torch import Tensor


def position_noise(seeds: Tensor, positions: Tensor, step: Tensor, law: str) -> Tensor:
    """float32 [N]; arguments as in the public function, already checked."""
    noise = torch.empty(len(seeds), dtype=torch.float32, device=seeds.device)
    torch.ops.dllm_kernels.position_noise(seeds, positions, step, law == "gumbel", noise)
    return noise
