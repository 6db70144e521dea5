"""Noise of positions in eager PyTorch: the specification. Formulae: `api.py` and :mod:`dllm_kernels.philox`."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels import philox


def position_noise(seeds: Tensor, positions: Tensor, step: Tensor, law: str) -> Tensor:
    """float32 [N]; arguments as in the public function, already checked.

    Example:
        >>> position_noise(*torch.zeros(3, 1, dtype=torch.int64), "gumbel").shape
        torch.Size([1])
    """
    first, second, *_ = philox.words(seeds, torch.zeros_like(seeds), positions, step, philox.RANDOM_CONFIDENCE)
    return philox.unit_interval(first) if law == "uniform" else philox.gumbel_from_words(first, second)
