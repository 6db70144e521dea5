"""Dropout in eager PyTorch: the specification. Formulae: `api.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels import philox
from dllm_kernels.dropout.api import STEPS


def dropout(x: Tensor, threshold: int, seed: Tensor) -> Tensor:
    """y of the shape of x; `threshold` is 65536 p, the other arguments as in the public function, already checked.

    Example:
        >>> dropout(torch.ones(4), 0, torch.tensor(1))
        tensor([1., 1., 1., 1.])
    """
    kept = (_bits(x.numel(), seed) >= threshold).view(x.shape)
    return torch.where(kept, x.float() * (STEPS / (STEPS - threshold)), 0.0).to(x.dtype)


def _bits(count: int, seed: Tensor) -> Tensor:
    """h, int64 [count], from 0 to 65535."""
    tiles, zero = -(-count // 256), torch.zeros((), dtype=torch.int64)
    block = torch.arange(32 * tiles).view(tiles, 32)
    words = torch.stack(philox.words(seed, block, block >> 32, zero, philox.DROPOUT), dim=1)  # [tiles, 4, 32]
    return torch.stack([words & 0xFFFF, words >> 16], dim=2).flatten()[:count]
