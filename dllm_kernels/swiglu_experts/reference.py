"""Chosen experts in eager PyTorch: the specification. Formulae: `api.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels.int8_linear.reference import logits as int8_product


def swiglu_experts(
    hidden: Tensor,
    gate_up: Tensor,
    down: Tensor,
    index: Tensor,
    weights: Tensor,
    gate_up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
) -> Tensor:
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
        gate, up = _product(hidden[token], gate_up, gate_up_scale, expert).to(kind).chunk(2, dim=-1)
        activated = F.silu(gate) * up
        if down_scale is None:
            activated = activated.to(hidden.dtype)
        results[token, place] = _product(activated, down, down_scale, expert).to(hidden.dtype).to(kind)
    return (results * weights[..., None]).sum(1).to(hidden.dtype)


def _product(rows: Tensor, weights: Tensor, scales: Tensor | None, expert: int) -> Tensor:
    """With an expert's weight: of the dtype of the rows, or in float32 where the weight has 8 bits."""
    if scales is None:
        return F.linear(rows, weights[expert])
    return int8_product(rows, weights[expert], scales[expert], None)
