"""Attention in eager PyTorch: the specification. Formulae: `api.py`."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """[B, heads, L, d] of the dtype of `query`; arguments as in the public function, already checked.

    Example:
        >>> ones = torch.ones(1, 1, 2, 32)
        >>> torch.equal(attention(ones, ones, ones, None, 1.0), ones)
        True
    """
    kind = torch.promote_types(query.dtype, torch.float32)
    shared = query.shape[1] // key.shape[1]
    key, value = (x.to(kind).repeat_interleave(shared, 1) for x in (key, value))
    scores = query.to(kind) @ key.transpose(2, 3) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], -torch.inf)
    sees_none = (scores == -torch.inf).all(-1, keepdim=True)
    weights = scores.softmax(-1).masked_fill(sees_none, 0)
    return (weights @ value).to(query.dtype)


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, window: int | None, scale: float
) -> Tensor:
    """[1, heads, T, d] of the dtype of `query`; arguments as in the public function, already checked.

    Example:
        >>> values = torch.eye(32)[None, None, :3]
        >>> torch.equal(packed_attention(values, values, values, torch.tensor([0, 1, 2, 3]), None, 1.0), values)
        True
    """
    out, bounds = torch.empty_like(query), ends.tolist()
    for begin, end in itertools.pairwise(bounds):
        place = torch.arange(end - begin, device=query.device)
        seen = None if window is None else ((place[:, None] - place).abs() < window)[None]
        if end > begin:
            row = (x[:, :, begin:end] for x in (query, key, value))
            out[:, :, begin:end] = attention(*row, seen, scale)
    return out
