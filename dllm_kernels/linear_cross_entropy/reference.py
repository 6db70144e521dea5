"""Weighted cross-entropy from hidden states in eager PyTorch: the specification. Formulae: `api.py`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels.masked_cross_entropy.reference import masked_cross_entropy


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weight: Tensor,
    rows: Tensor | None = None,
    capacity: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """loss, nll; arguments as in the public function, already checked.

    All of float64, it is computed in float64: that is the truth of the tests.

    Example:
        >>> hidden, weight = torch.eye(2, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)
        >>> linear_cross_entropy(hidden, weight, None, torch.tensor([3, 1]), torch.tensor([1.0, 0.0]).double())
        (tensor(1.3863, dtype=torch.float64), tensor([1.3863, 0.0000], dtype=torch.float64))
    """
    rows = torch.arange(len(targets), device=hidden.device) if rows is None else rows
    used, inside = row_weight != 0, (rows >= 0) & (rows < len(hidden))
    read = (used & inside)[:, None] & torch.ones_like(hidden[:1], dtype=torch.bool)
    h = torch.where(read, hidden[rows.clamp(0, max(len(hidden) - 1, 0))], 0.0)
    targets = torch.where(inside, targets, -1)  # what reads no hidden row has no label either
    if capacity is not None:
        row_weight = torch.where(used.sum() > capacity, math.nan, row_weight)
    return masked_cross_entropy(F.linear(h, weight, bias), targets, row_weight, label_smoothing, z_loss, softcap)
