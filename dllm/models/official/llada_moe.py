"""LLaDA-MoE (7B-A1B): a Qwen3-MoE, with the same names of tensors and other names of fields."""

from __future__ import annotations

from typing import Any

from dllm.models.official.fields import needed, refuse, rotary, unchanged
from dllm.models.official.mapping import Mapping

MASK = 156895  # <|mask|>; config.json does not name it
# The values that Qwen3-MoE can represent. OLMoE cannot: it normalises q and k over all heads together.
ALLOWED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "clip_qkv": (None,),
    "hidden_act": ("silu",),
    "moe_router_enable_expert_bias": (False, None),
    "moe_router_score_function": ("softmax", None),
    "partial_rotary_factor": (1, None),
    "qk_layernorm": (True,),
    "shared_expert_intermediate_size": (None, 0),
}
FIELD_NAMES = {
    "intermediate_size": ("dense_intermediate_size",),
    "moe_intermediate_size": ("expert_intermediate_size",),
}
NEEDED = (
    "expert_intermediate_size",
    "hidden_size",
    "num_attention_heads",
    "num_experts",
    "num_hidden_layers",
    "vocab_size",
)
# fields with an official name or without an equal; the official code never reads norm_topk_prob
OTHERS = (
    *ALLOWED,
    "dense_intermediate_size",
    "expert_intermediate_size",
    "moe_layer_freq",
    "norm_topk_prob",
    "routed_scaling_factor",
)


def recognises(config: dict[str, Any]) -> bool:
    """Whether this is the configuration of a LLaDA-MoE checkpoint, which says "llada" as the dense model does."""
    kind = str((config.get("architectures") or [""])[0])
    return config.get("model_type") in ("llada", "lladamoe", "llada_moe") and (
        "expert_intermediate_size" in config or kind.startswith("LLaDAMoE")
    )


def mapping(config: dict[str, Any]) -> Mapping:
    """The mapping of a LLaDA-MoE checkpoint.

    Layers with 0 in `moe_layer_freq` are dense. The weights of the chosen experts do not sum to one: the official code
    never normalises them, whatever `norm_topk_prob` says.

    Raises:
        ValueError: a field has a value that Qwen3-MoE cannot represent, or is missing.

    Source: inclusionAI/LLaDA-MoE-7B-A1B-Instruct.
    """
    needed("llada_moe", config, NEEDED)
    refuse("llada_moe", config, ALLOWED)
    layers = config["num_hidden_layers"]
    moe = config.get("moe_layer_freq", 1)
    if moe == 1:
        moe = [1] * layers
    if not isinstance(moe, list) or len(moe) != layers or not set(moe) <= {0, 1}:
        raise ValueError(f"moe_layer_freq must be a list of {layers} zeros and ones, got {moe!r}")
    mask = config.get("mask_token_id")
    fields = unchanged(config, *OTHERS) | rotary(config)
    fields |= dict(
        attention_bias=False,
        decoder_sparse_step=1,
        head_dim=config["hidden_size"] // config["num_attention_heads"],
        hidden_act="silu",
        intermediate_size=config.get("dense_intermediate_size") or config["expert_intermediate_size"],
        mlp_only_layers=[layer for layer, is_moe in enumerate(moe) if not is_moe],
        moe_intermediate_size=config["expert_intermediate_size"],
        norm_topk_prob=False,
        use_sliding_window=False,
    )
    return Mapping(
        family="llada_moe",
        model_class="Qwen3MoeForCausalLM",
        official=config,
        fields=fields,
        field_names=FIELD_NAMES,
        mask_token_id=MASK if mask is None and config["vocab_size"] > MASK else mask,
    )
