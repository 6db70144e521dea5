"""RND1 (30B-A3B): a Qwen3-MoE whose logits are shifted to the right."""

from __future__ import annotations

from typing import Any

from dllm.models.official.fields import needed, refuse, rotary, unchanged
from dllm.models.official.mapping import Mapping

MASK = 151669
ALLOWED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "hidden_act": ("silu",),
    "use_sliding_window": (False, None),
}


def recognises(config: dict[str, Any]) -> bool:
    """Whether this is the configuration of an RND1 checkpoint."""
    return config.get("model_type") == "rnd1"


def mapping(config: dict[str, Any]) -> Mapping:
    """The mapping of an RND1 checkpoint. Names of tensors and fields are Qwen3-MoE's.

    `rope_scaling` and `sliding_window` are False there instead of null, which transformers would take for values.

    Raises:
        ValueError: a field has a value that Qwen3-MoE cannot represent, or is missing.

    Source: radicalnumerics/RND1-Base-0910.
    """
    needed("rnd1", config, ("hidden_size", "num_hidden_layers", "num_experts", "vocab_size"))
    refuse("rnd1", config, ALLOWED)
    fields = unchanged(config, "mask_token_id", "moe_backend", "num_diffusion_steps", "sliding_window")
    mask = config.get("mask_token_id")
    return Mapping(
        family="rnd1",
        model_class="Qwen3MoeForCausalLM",
        official=config,
        fields=fields | rotary(config) | {"use_sliding_window": False},
        right_shift=True,
        mask_token_id=MASK if mask is None and config["vocab_size"] > MASK else mask,
    )
