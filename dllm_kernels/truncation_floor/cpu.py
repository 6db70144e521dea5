"""Top-k and top-p on the CPU: calls csrc/truncation_floor.cpp."""

from __future__ import annotations

import torch
from torch import Tensor


def truncation_floor(
    logits: Tensor,
    temperature: Tensor | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    suppress: Tensor | None = None,
    rows: Tensor | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """The smallest logit that is kept, [N]; arguments as in the public function, already checked."""
    floor = torch.empty(logits.shape[0] if rows is None else rows.shape[0], dtype=torch.float32, device=logits.device)
    suppress = suppress if suppress is None else suppress.contiguous()
    torch.ops.dllm_kernels.truncation_floor(logits.detach(), temperature, top_k, top_p, suppress, rows, count, floor)
    return floor
