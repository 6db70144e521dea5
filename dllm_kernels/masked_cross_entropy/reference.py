"""Weighted cross-entropy in eager PyTorch: the specification. Formulae: `api.py`; gradients: torch's own."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def masked_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """loss, nll; arguments as in the public function, already checked.

    float64 logits and weights are computed in float64: that is the truth of the tests.

    Example:
        >>> masked_cross_entropy(torch.zeros(2, 2).double(), torch.tensor([0, -100]), torch.tensor([3.0, 0.0]).double())
        (tensor(2.0794, dtype=torch.float64), tensor([0.6931, 0.0000], dtype=torch.float64))
    """
    used = row_weight != 0
    x = torch.where(used[:, None], logits if logits.dtype == torch.float64 else logits.float(), 0.0)
    l = x if softcap is None else softcap * torch.tanh(x / softcap)
    log_p = l.log_softmax(-1)

    inside = (targets >= 0) & (targets < logits.shape[1])
    nll = -log_p.gather(-1, torch.where(used & inside, targets, 0)[:, None]).squeeze(-1)
    if label_smoothing > 0:
        nll = (1 - label_smoothing) * nll - label_smoothing * log_p.mean(-1)
    if z_loss > 0:
        nll = nll + z_loss * l.logsumexp(-1).square()

    valid = inside & (row_weight > 0) & (row_weight < math.inf)
    nll = torch.where(used, nll * torch.where(valid, 1.0, math.nan), 0.0)
    return (row_weight * nll).sum(), nll
