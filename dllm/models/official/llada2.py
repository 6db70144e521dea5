"""LLaDA2.0 and 2.1 (mini, flash): a GLM-4-MoE under other names, with block-causal attention."""

from __future__ import annotations

from typing import Any

from dllm.models.official.fields import needed, refuse, rotary, unchanged
from dllm.models.official.mapping import Fused, Mapping

MASK = 156895  # <|mask|>; config.json does not name it
BLOCK = 32  # tokens of a block; config.json does not name it
NAMES = (
    ("model.word_embeddings", "model.embed_tokens"),
    ("model.layers.{}.attention.dense", "model.layers.{}.self_attn.o_proj"),
    ("model.layers.{}.attention.query_layernorm", "model.layers.{}.self_attn.q_norm"),
    ("model.layers.{}.attention.key_layernorm", "model.layers.{}.self_attn.k_norm"),
    ("model.layers.{}.mlp.gate.expert_bias", "model.layers.{}.mlp.gate.e_score_correction_bias"),
)
# The values that GLM-4-MoE can represent.
ALLOWED: dict[str, tuple[Any, ...]] = {
    "embedding_dropout": (0.0, None),
    "hidden_act": ("silu",),
    "moe_router_enable_expert_bias": (True,),
    "norm_head": (False, None),
    "norm_softmax": (False, None),
    "norm_topk_prob": (True,),
    "num_nextn_predict_layers": (0, None),
    "output_dropout": (0.0, None),
    "router_dtype": ("fp32", None),
    "score_function": ("sigmoid",),
    "use_bias": (False, None),
    "use_qk_norm": (True,),
    "use_qkv_bias": (False, None),
    "use_rmsnorm": (True,),
    "use_sliding_window": (False, None),
    "using_split_qkv_in_self_attention": (False, None),
}
NEEDED = (
    "first_k_dense_replace",
    "hidden_size",
    "moe_intermediate_size",
    "n_group",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_shared_experts",
    "topk_group",
    "vocab_size",
)
FIELD_NAMES = {"n_routed_experts": ("num_experts",), "n_shared_experts": ("num_shared_experts",)}
OTHERS = (*ALLOWED, "mask_token_id", "num_experts", "num_shared_experts", "rotary_dim")


def recognises(config: dict[str, Any]) -> bool:
    """Whether this is the configuration of a LLaDA2 checkpoint; dFactory's copies have a model type of their own."""
    return str(config.get("model_type")).startswith("llada2_moe")


def mapping(config: dict[str, Any]) -> Mapping:
    """The mapping of a LLaDA2 checkpoint.

    Of q, k and v, one tensor [heads * head_dim + 2 * kv_heads * head_dim, hidden_size] becomes three. Experts are
    chosen by sigmoid score and bias, first `topk_group` of `n_group` groups. Attention is block-causal in blocks of 32
    tokens: callers pass it as a 4-D mask.

    Raises:
        ValueError: a field has a value that GLM-4-MoE cannot represent, or is missing.

    Source: inclusionAI/LLaDA2.0-mini, inclusionAI/LLaDA2.1-mini.
    """
    needed("llada2", config, NEEDED)
    refuse("llada2", config, ALLOWED)
    _check_groups(*(config[name] for name in ("num_experts", "n_group", "topk_group", "num_experts_per_tok")))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rotated = (config.get("rope_parameters") or {}).get("partial_rotary_factor") or config.get("partial_rotary_factor")
    if rotated is None:
        rotated = config["rotary_dim"] / head_dim if config.get("rotary_dim") else 0.5
    if config.get("rotary_dim") not in (None, int(rotated * head_dim)):
        raise ValueError(
            f"rotary_dim must be partial_rotary_factor * head_dim = {rotated * head_dim:g}, got {config['rotary_dim']}"
        )
    fields = unchanged(config, *OTHERS) | rotary(config, partial=rotated)
    fields |= dict(
        attention_bias=False,
        head_dim=head_dim,
        hidden_act="silu",
        n_routed_experts=config["num_experts"],
        n_shared_experts=config["num_shared_experts"],
        norm_topk_prob=True,
        num_nextn_predict_layers=0,
        use_qk_norm=True,
    )
    layer = "model.layers.{}"
    qkv = Fused(
        f"{layer}.attention.query_key_value",
        tuple(f"{layer}.self_attn.{part}_proj" for part in "qkv"),
        (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim),
    )
    mask = config.get("mask_token_id")
    return Mapping(
        family="llada2",
        model_class="Glm4MoeForCausalLM",
        official=config,
        fields=fields,
        field_names=FIELD_NAMES,
        renamed=NAMES,
        fused=(qkv,),
        mask_token_id=MASK if mask is None and config["vocab_size"] > MASK else mask,
        block_size=BLOCK,
    )


def _check_groups(experts: int, groups: int, chosen_groups: int, chosen: int) -> None:
    """Check that the groups of experts, of which some are chosen for a token, are of one size and hold enough."""
    if type(groups) is not int or groups < 1 or experts % groups or experts < 2 * groups:
        raise ValueError(f"n_group must divide num_experts = {experts} into groups of at least 2, got {groups!r}")
    if type(chosen_groups) is not int or not 1 <= chosen_groups <= groups:
        raise ValueError(f"topk_group must be from 1 to n_group = {groups}, got {chosen_groups!r}")
    if chosen > chosen_groups * experts // groups:
        raise ValueError(
            f"num_experts_per_tok must be at most the {chosen_groups * experts // groups} experts of {chosen_groups} "
            f"groups, got {chosen}"
        )
