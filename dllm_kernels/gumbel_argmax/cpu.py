"""Gumbel-argmax on the CPU: calls csrc/gumbel_argmax.cpp."""

from __future__ import annotations

import torch
from torch import Tensor


def gumbel_argmax(
    logits: Tensor,
    temperature: Tensor | None = None,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    step: Tensor | None = None,
    suppress: Tensor | None = None,
    rows: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """token, log_prob, margin, neg_entropy, lse; arguments as in the public function, already checked."""
    n = logits.shape[0] if rows is None else rows.shape[0]
    token = torch.empty(n, dtype=torch.int64, device=logits.device)
    log_prob, margin, neg_entropy, lse = (torch.empty(n, dtype=torch.float32, device=logits.device) for _ in range(4))
    out = (token, log_prob, margin, neg_entropy, lse)
    if suppress is not None:
        suppress = suppress.contiguous()
    torch.ops.dllm_kernels.gumbel_argmax(
        logits.detach(), temperature, seeds, positions, step, suppress, rows, count, *out
    )
    return out
