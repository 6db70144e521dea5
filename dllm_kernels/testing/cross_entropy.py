"""The weighted cross-entropy in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def plain_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """loss, nll as anybody would compute them, upcasting the logits: the yardstick of the error budget.

    Example:
        >>> plain_cross_entropy(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([2.0]))[0]
        tensor(1.3863)
    """
    l = logits.float() if softcap is None else softcap * torch.tanh(logits.float() / softcap)
    used = row_weight != 0
    nll = F.cross_entropy(l, targets.where(used, 0), reduction="none", label_smoothing=label_smoothing)
    if z_loss:
        nll = nll + z_loss * l.logsumexp(-1).square()
    nll = torch.where(used, nll, 0.0)
    return (row_weight * nll).sum(), nll
