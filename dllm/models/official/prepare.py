"""What no file of a checkpoint says: how a loaded model of a known family must differ from transformers' default."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dllm.models import experts
from dllm.models.official.mapping import marker_of

BIAS = "e_score_correction_bias"
GROUPED_DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # of torch's grouped product, which experts use


def prepared(model: nn.Module) -> nn.Module:
    """Prepare a model, in place, by the marker of its configuration and by its experts. It is not saved.

    - The embedding of LLaDA has no padding row: its padding token ends sequences, too, and must learn.
    - Experts in float64 are computed one by one: torch's grouped product has no float64.
    - Other experts run by a kernel of ours where that serves them (:mod:`dllm.models.experts`).
    - Routing of GLM-4-MoE: transformers 4 gives experts of groups that were not chosen the score 0, so that one of them
      wins if all others are negative. A hook routes as the official code and transformers 5 do, where they never win.

    Returns:
        The same model.

    Example:
        >>> prepared(nn.Linear(2, 2))
        Linear(in_features=2, out_features=2, bias=True)
    """
    family = marker_of(getattr(model, "config", None)).get("family")
    if family == "llada":
        model.get_input_embeddings().padding_idx = None
    if hasattr(model, "set_experts_implementation") and model.dtype not in GROUPED_DTYPES:
        model.set_experts_implementation("eager")
    experts.use_kernel(model)
    if family == "llada2":
        for module in model.modules():
            if hasattr(module, "get_topk_indices") and _route not in module._forward_hooks.values():
                module.register_forward_hook(_route)
    return model


def _route(router: nn.Module, arguments: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The chosen experts [tokens, top_k] and their weights, in place of those of a router of transformers 4.

    Scores are sigmoid(x W'). A group's score is the sum of its two best (score + bias); of the `topk_group` best groups
    the `top_k` best (score + bias) are chosen; weights are scores, normalised and scaled.
    """
    states = arguments[0].reshape(-1, router.weight.shape[1]).float()
    scores = nn.functional.linear(states, router.weight.float()).sigmoid()
    choice = (scores + router.e_score_correction_bias).detach()
    grouped = choice.view(len(choice), router.n_group, -1)
    group = grouped.topk(2, dim=-1).values.sum(-1).topk(router.topk_group, dim=-1, sorted=False).indices
    chosen = torch.zeros(grouped.shape[:2], dtype=torch.bool, device=choice.device).scatter_(1, group, True)
    choice = grouped.masked_fill(~chosen[..., None], -torch.inf).flatten(1)
    experts = choice.topk(router.top_k, dim=-1, sorted=False).indices
    weights = scores.gather(1, experts)
    if router.norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return experts, weights * router.routed_scaling_factor


def keep_float32(model: nn.Module, biases: dict[str, Tensor]) -> nn.Module:
    """Give the routers the biases as they are stored: transformers 4 rounds them to the dtype of the model.

    Args:
        model: the model.
        biases: biases by their names; one whose dtype is that of the model is not changed.

    Returns:
        The same model.
    """
    for name, bias in biases.items():
        owner, _, last = name.rpartition(".")
        buffers = model.get_submodule(owner)._buffers
        if buffers[last].dtype != torch.float32 == bias.dtype:
            buffers[last] = bias.to(buffers[last].device)
    return model
