"""Chosen experts in eager PyTorch: the specification. Formulae: `api.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu_experts(hidden: Tensor, gate_up: Tensor, down: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """[T, H] of the dtype of `hidden`; arguments as in the public function, already checked, `weights` float32 or more.

    Example:
        >>> one = torch.ones(1, 1)
        >>> swiglu_experts(one, torch.ones(1, 2, 1), torch.ones(1, 1, 1), torch.tensor([[0]]), one)
        tensor([[0.7311]])
    """
    kind = torch.promote_types(hidden.dtype, torch.float32)
    results = hidden.new_zeros(*index.shape, hidden.shape[1], dtype=kind)
    for expert in range(len(down)):
        token, place = (index == expert).nonzero(as_tuple=True)
        gate, up = F.linear(hidden[token], gate_up[expert]).to(kind).chunk(2, dim=-1)
        activated = (F.silu(gate) * up).to(hidden.dtype)
        results[token, place] = F.linear(activated, down[expert]).to(kind)
    return (results * weights[..., None]).sum(1).to(hidden.dtype)
