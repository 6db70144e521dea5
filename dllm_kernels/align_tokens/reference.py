"""Alignment in eager PyTorch: the specification. Formulae: `api.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels.align_tokens.api import BLANK


def align_tokens(x0: Tensor, x0_length: Tensor, x1: Tensor, x1_length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z0, z1 [B, N + M] and length [B]; arguments as in the public function, already checked.

    Takes 8 B (N + 1) (M + 1) bytes.

    Example:
        >>> one = torch.tensor([1])
        >>> align_tokens(torch.tensor([[5]]), one, torch.tensor([[6]]), one)
        (tensor([[ 5, -1]]), tensor([[ 6, -1]]), tensor([1]))
    """
    return _way_back(_distances(x0, x1), x0, x0_length, x1, x1_length)


def _distances(x0: Tensor, x1: Tensor) -> Tensor:
    """D, int64 [B, N + 1, M + 1]. Cells beyond the end of a pair are not used, and no cell before depends on them."""
    (pairs, n), m = x0.shape, x1.shape[1]
    column = torch.arange(m + 1)
    rows = [column.expand(pairs, -1)]
    for i in range(n):
        above = rows[-1]
        diagonal = above[:, :-1] + (x0[:, i : i + 1] != x1)
        best = torch.cat([torch.full((pairs, 1), i + 1), torch.minimum(diagonal, above[:, 1:] + 1)], dim=1)
        # the least of best[k] + (j - k) over k <= j: any number of insertions after another move
        rows.append((best - column).cummin(1).values + column)
    return torch.stack(rows, dim=1)


def _way_back(
    distance: Tensor, x0: Tensor, x0_length: Tensor, x1: Tensor, x1_length: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The alignments, by the moves from the last cell of each pair to its first."""
    (pairs, n), m = x0.shape, x1.shape[1]
    pair, i, j = torch.arange(pairs), x0_length.clone(), x1_length.clone()
    z0, z1 = x0.new_full((2, pairs, n + m), BLANK)
    length = torch.zeros_like(i)
    while bool(((i > 0) | (j > 0)).any()):
        above, left = (i - 1).clamp(min=0), (j - 1).clamp(min=0)
        # clamped: tokens before the first are not used
        a = x0[pair, above] if n else torch.full_like(i, BLANK)
        b = x1[pair, left] if m else torch.full_like(j, BLANK)
        here = distance[pair, i, j]
        pairs_up = (i > 0) & (j > 0) & (here == distance[pair, above, left] + (a != b))
        deletes = ~pairs_up & (i > 0) & (here == distance[pair, above, j] + 1)
        inserts = ~pairs_up & ~deletes & (j > 0)
        moves = pairs_up | deletes | inserts
        z0[pair[moves], length[moves]] = torch.where(inserts, BLANK, a)[moves]
        z1[pair[moves], length[moves]] = torch.where(deletes, BLANK, b)[moves]
        i, j, length = i - (pairs_up | deletes).long(), j - (pairs_up | inserts).long(), length + moves.long()
    column = torch.arange(n + m)
    forwards = (length[:, None] - 1 - column).clamp(min=0)
    inside = column < length[:, None]
    return *(torch.where(inside, z.gather(1, forwards), BLANK) for z in (z0, z1)), length
