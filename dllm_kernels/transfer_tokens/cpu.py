"""Transfer on the CPU: calls csrc/transfer_tokens.cpp."""

from __future__ import annotations

import torch
from torch import Tensor


def transfer_tokens(
    canvas: Tensor,
    proposals: Tensor,
    confidence: Tensor,
    *,
    mask_id: int,
    k: Tensor,
    threshold: float | None,
    factor: float | None,
    budget: int | None,
    start: Tensor,
    length: Tensor,
) -> Tensor:
    """Commit in place and return the number committed per row; arguments as in the public function, already checked."""
    committed = torch.empty(canvas.shape[0], dtype=torch.int64, device=canvas.device)
    torch.ops.dllm_kernels.transfer_tokens(
        canvas, proposals, confidence, mask_id, k, threshold, factor, budget, start, length, committed
    )
    return committed
