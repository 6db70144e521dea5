"""Weighted cross-entropy on the CPU: calls csrc/masked_cross_entropy.cpp."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    row_scale: Tensor,
    gradient: Tensor | None,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
) -> Tensor:
    """nll [R]; writes row_scale times its gradient into `gradient`, unless that is None. It may be `logits` itself.

    Arguments as in the public function, already checked; row_scale float32 [R], 0 allowed.
    """
    nll = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
    torch.ops.dllm_kernels.masked_cross_entropy(
        logits.detach(), targets, row_weight, row_scale, label_smoothing, z_loss, softcap, nll, gradient
    )
    return nll


def scale_rows(x: Tensor, scale: Tensor) -> None:
    """x [R, C] times scale [R], in place; rows whose scale is 1 are not touched."""
    torch.ops.dllm_kernels.scale_rows(x, scale)
