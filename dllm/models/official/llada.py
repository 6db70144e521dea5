"""LLaDA (8B, 1.5, iLLaDA): a Llama under other names; a Qwen2 if q, k and v have biases."""

from __future__ import annotations

from typing import Any

from dllm.models.official.fields import TOKENS, needed, present, refuse, rotary
from dllm.models.official.mapping import Mapping

# `ff_out` is the name of two things: the head, and the down projection of each block
NAMES = (
    ("model.transformer.wte", "model.embed_tokens"),
    ("model.transformer.ln_f", "model.norm"),
    ("model.transformer.ff_out", "lm_head"),
    ("model.transformer.blocks.{}.attn_norm", "model.layers.{}.input_layernorm"),
    ("model.transformer.blocks.{}.ff_norm", "model.layers.{}.post_attention_layernorm"),
    ("model.transformer.blocks.{}.q_proj", "model.layers.{}.self_attn.q_proj"),
    ("model.transformer.blocks.{}.k_proj", "model.layers.{}.self_attn.k_proj"),
    ("model.transformer.blocks.{}.v_proj", "model.layers.{}.self_attn.v_proj"),
    ("model.transformer.blocks.{}.attn_out", "model.layers.{}.self_attn.o_proj"),
    ("model.transformer.blocks.{}.ff_proj", "model.layers.{}.mlp.gate_proj"),
    ("model.transformer.blocks.{}.up_proj", "model.layers.{}.mlp.up_proj"),
    ("model.transformer.blocks.{}.ff_out", "model.layers.{}.mlp.down_proj"),
)
# What the official code takes for fields that config.json lacks, where that matters here.
DEFAULTS = {
    "activation_type": "swiglu",
    "block_type": "sequential",
    "include_bias": True,
    "layer_norm_type": "default",
    "rope": False,
    "weight_tying": True,
}
# The values that Llama and Qwen2 can represent.
ALLOWED: dict[str, tuple[Any, ...]] = {
    "activation_type": ("silu",),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False, None),
    "block_group_size": (1,),
    "block_type": ("llama",),
    "clip_qkv": (None,),
    "embedding_dropout": (0.0,),
    "include_bias": (False,),
    "include_qkv_bias": (False, True),
    "input_emb_norm": (False,),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "residual_dropout": (0.0,),
    "rope": (True,),
    "rope_scaling": (None, False),  # the official code scales no positions
    "scale_logits": (False,),
}
FIELD_NAMES = {
    "hidden_size": ("d_model",),
    "num_hidden_layers": ("n_layers",),
    "num_attention_heads": ("n_heads",),
    "num_key_value_heads": ("n_kv_heads",),
    "intermediate_size": ("mlp_hidden_size",),
    "max_position_embeddings": ("max_sequence_length",),
    "vocab_size": ("embedding_size", "vocab_size"),
    "tie_word_embeddings": ("weight_tying",),
    "rms_norm_eps": ("rms_norm_eps",),
    "rope_theta": ("rope_theta",),
    "attention_dropout": ("attention_dropout",),
    "initializer_range": ("init_std",),
}


def recognises(config: dict[str, Any]) -> bool:
    """Whether this is the configuration of a LLaDA checkpoint. LLaDA-MoE says "llada", too, and is asked before."""
    return config.get("model_type") == "llada"


def mapping(config: dict[str, Any]) -> Mapping:
    """The mapping of a LLaDA checkpoint.

    The MLP is down(silu(gate x) * up x), halves of a head are rotated, and no logits are shifted. Official code rotates
    q and k in float32, Llama in the dtype of the model: in bfloat16 the logits differ by rounding.

    Raises:
        ValueError: a field has a value that Llama and Qwen2 cannot represent, or is missing.

    Source: LLaDA (arXiv:2502.09992), GSAI-ML/LLaDA-8B-Instruct.
    """
    full = DEFAULTS | config
    needed("llada", full, ("d_model", "n_heads", "n_layers", "vocab_size"))
    with_biases = bool(full.get("include_qkv_bias"))
    refuse("llada", full, ALLOWED)
    refuse("llada", full.get("rope_parameters") or {}, {"rope_type": ("default",)})
    heads, width = full["n_heads"], full["d_model"]
    one = full.get("multi_query_attention")
    kv_heads = full.get("n_kv_heads") or (1 if one else heads)
    if width % heads or heads % kv_heads:
        raise ValueError(f"n_heads must divide d_model, and n_kv_heads n_heads; got {heads}, {width} and {kv_heads}")
    if one and kv_heads != 1:
        raise ValueError(f"n_kv_heads must be 1 or null with multi_query_attention, got {kv_heads}")
    fields = dict(
        hidden_size=width,
        intermediate_size=full.get("mlp_hidden_size") or int(full.get("mlp_ratio", 4) * width),
        num_hidden_layers=full["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        hidden_act="silu",
        vocab_size=full.get("embedding_size") or full["vocab_size"],
        max_position_embeddings=full.get("max_sequence_length", 1024),
        rms_norm_eps=full.get("rms_norm_eps", 1e-5),
        tie_word_embeddings=full["weight_tying"],
        attention_dropout=full.get("attention_dropout", 0.0),
        initializer_range=full.get("init_std", 0.02),
        **({"use_sliding_window": False} if with_biases else {"attention_bias": False, "mlp_bias": False}),
        **present(full, *TOKENS, "dtype", "torch_dtype"),
        **rotary(full),
    )
    return Mapping(
        family="llada",
        model_class="Qwen2ForCausalLM" if with_biases else "LlamaForCausalLM",
        official=config,
        fields=fields,
        field_names=FIELD_NAMES,
        renamed=NAMES,
        mask_token_id=full.get("mask_token_id"),
    )
