"""Transfer in eager PyTorch: the specification. A rule determines n; the n most confident columns are committed."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels.transfer_tokens.api import COST_CAP, COST_UNIT


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
    """Commit in place and return the number committed per row; arguments as in the public function, already checked.

    Example:
        >>> canvas, one = torch.tensor([[9, 9]]), torch.tensor([1])
        >>> rule = dict(mask_id=9, k=one, threshold=None, factor=None, budget=None, start=one * 0, length=one * 2)
        >>> transfer_tokens(canvas, torch.tensor([[1, 2]]), torch.tensor([[0.1, 0.2]]), **rule), canvas
        (tensor([1]), tensor([[9, 2]]))
    """
    (batch, columns), window = canvas.shape, proposals.shape[1]
    if batch == 0 or columns == 0 or window == 0:
        return torch.zeros(batch, dtype=torch.int64, device=canvas.device)
    offset = torch.arange(window, device=canvas.device)
    column = start[:, None] + offset
    inside = (column >= 0) & (column < columns) & (offset < length[:, None])
    column = column.clamp(0, columns - 1)
    current = canvas.gather(1, column)
    eligible = inside & (current == mask_id) & (proposals >= 0)

    # two stable sorts: by confidence, descending, then the eligible ones to the front; equal ones keep their order
    certain = confidence.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    order = certain.sort(dim=1, descending=True, stable=True).indices
    eligible_first = eligible.gather(1, order).to(torch.int8).sort(dim=1, descending=True, stable=True).indices
    order = order.gather(1, eligible_first)
    c = certain.gather(1, order)
    rank = offset + 1
    take = rank <= k[:, None]
    if threshold is not None:
        take |= c >= threshold
    elif factor is not None:
        bar = 1 - torch.full_like(c, factor) / (rank + 1)  # a quotient and a difference, each rounded to float32
        take |= (c >= bar).to(torch.int8).cummin(1).values.bool()
    elif budget is not None:
        cost = ((-c).clamp(0, COST_CAP) / COST_UNIT).to(torch.int64)
        take |= cost.cumsum(1) - cost <= budget
    take &= eligible.gather(1, order)

    commit = torch.zeros_like(eligible).scatter(1, order, take)
    row, j = commit.nonzero(as_tuple=True)
    canvas[row, column[row, j]] = proposals[row, j]
    return commit.sum(1)
