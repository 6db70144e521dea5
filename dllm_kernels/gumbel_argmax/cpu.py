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
    begin_suppress: Tensor | None = None,
    tempered: bool = False,
    softcap: float | None = None,
    floor: Tensor | None = None,
    rows: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """token, log_prob, margin, neg_entropy, lse, argmax; arguments as in the public function, already checked, and
    `floor` [N]: logits below it count as -inf."""
    out = outputs(logits.shape[0] if rows is None else rows.shape[0], logits.device)
    hidden = (adjacent(suppress), adjacent(begin_suppress))
    noise = (temperature, seeds, positions, step)
    torch.ops.dllm_kernels.gumbel_argmax(logits.detach(), *noise, *hidden, tempered, softcap, floor, rows, count, *out)
    return out


def outputs(n: int, device: torch.device) -> tuple[Tensor, ...]:
    """The six results, for an operator to fill."""
    token, argmax = (torch.empty(n, dtype=torch.int64, device=device) for _ in range(2))
    return token, *(torch.empty(n, dtype=torch.float32, device=device) for _ in range(4)), argmax


def adjacent(flags: Tensor | None) -> Tensor | None:
    """Flags as operators read them, or None."""
    return flags if flags is None else flags.contiguous()
