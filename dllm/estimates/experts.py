"""Mixtures of experts in an estimate: which weights are active, and a computation whose shapes no value decides.

A router chooses k of E experts for each token. In a real run the numbers of tokens of the experts depend on values. An
estimate computes the T k pairs of token and expert in one product instead, with the weight of one expert: FLOPs and
activations are those of a grouped product over experts (`torch.nn.functional.grouped_mm`), which has T k rows as well.
"""

from __future__ import annotations

import re
import types
from typing import NamedTuple

from torch import Tensor, nn

# A parameter of a routed expert; shared experts run for every token.
_ROUTED = re.compile(r"(^|\.)experts\.")


class Mixture(NamedTuple):
    """The routed experts of a model: bytes or numbers of values, in all layers together.

    experts: E, in a layer.
    chosen: k, for each token.
    parameters: of all routed experts.
    bytes: of the same.
    """

    experts: int
    chosen: int
    parameters: int
    bytes: int

    def share(self, tokens: int) -> float:
        """The share of the experts that so many tokens use, at most: min(1, T k / E).

        Example:
            >>> Mixture(128, 8, 0, 0).share(1), Mixture(128, 8, 0, 0).share(100)
            (0.0625, 1.0)
        """
        return min(1.0, tokens * self.chosen / self.experts)


def mixture_of(model: nn.Module) -> Mixture | None:
    """The routed experts of a model; None if it has none.

    Example:
        >>> mixture_of(nn.Linear(2, 2)) is None
        True
    """
    routed = [weight for name, weight in model.named_parameters() if _ROUTED.search(name)]
    if not routed:
        return None
    experts = next(
        len(module) if isinstance(module, nn.ModuleList) else len(next(module.parameters()))
        for name, module in model.named_modules()
        if name.endswith(".experts")
    )
    numbers = sum(weight.numel() for weight in routed), sum(weight.numel() * weight.element_size() for weight in routed)
    return Mixture(experts, model.config.num_experts_per_tok, *numbers)


def balance_experts(model: nn.Module) -> nn.Module:
    """Let the experts of Qwen3-MoE and GLM-4-MoE compute all pairs of token and expert in one product, in place.

    Returns:
        The same model. Its results are no longer right, its shapes are.
    """
    for module in model.modules():
        weight = getattr(module, "gate_up_proj", None)
        if isinstance(weight, Tensor) and weight.dim() == 3:  # transformers 5: all experts in two tensors
            module.forward = types.MethodType(_all_in_one, module)
        elif isinstance(getattr(module, "experts", None), nn.ModuleList):  # transformers 4: one module each
            if hasattr(module, "moe"):
                module.moe = types.MethodType(_first_for_all, module)
            else:
                module.forward = types.MethodType(_routed_by_softmax, module)
    return model


def _all_in_one(experts: nn.Module, states: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Experts of transformers 5, for tokens [T, H], chosen experts and their weights [T, k]."""
    rows = states.repeat_interleave(index.shape[1], dim=0)
    gate, up = nn.functional.linear(rows, experts.gate_up_proj[0]).chunk(2, dim=-1)
    out = nn.functional.linear(experts.act_fn(gate) * up, experts.down_proj[0])
    return _summed(out, weights).to(states.dtype)


def _first_for_all(block: nn.Module, states: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Experts of GLM-4-MoE of transformers 4; arguments as above."""
    out = block.experts[0](states.repeat_interleave(index.shape[1], dim=0))
    return _summed(out, weights).to(states.dtype)


def _routed_by_softmax(block: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
    """The block of Qwen3-MoE of transformers 4: tokens [B, L, H] to the same shape, and the router's logits."""
    tokens = states.flatten(0, 1)
    logits = block.gate(tokens)
    weights, index = logits.softmax(-1).topk(block.top_k, dim=-1)
    return _first_for_all(block, tokens, index, weights.to(states.dtype)).view_as(states), logits


def _summed(rows: Tensor, weights: Tensor) -> Tensor:
    """[T k, H] summed with weights [T, k] to [T, H]."""
    return (rows * weights.reshape(-1, 1)).unflatten(0, weights.shape).sum(1)
