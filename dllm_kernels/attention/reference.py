"""Attention in eager PyTorch: the specification. Formulae: `api.py`."""

from __future__ import annotations

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
