"""Apple's Cut Cross-Entropy: head and cross-entropy without stored logits."""

import torch
from cut_cross_entropy import linear_cross_entropy


def weighted_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, row_weight: torch.Tensor
) -> torch.Tensor:
    """Each row's loss, weighted afterwards."""
    return (linear_cross_entropy(hidden, weight, targets, reduction="none") * row_weight).sum()
