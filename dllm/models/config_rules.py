"""What fields of config.json must be, whatever the model: checked before transformers computes with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

SIZES = (
    "d_model",
    "dense_intermediate_size",
    "embedding_size",
    "expert_intermediate_size",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "max_sequence_length",
    "mlp_hidden_size",
    "moe_intermediate_size",
    "n_heads",
    "n_kv_heads",
    "n_layers",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
)
NUMBERS = (
    "attention_dropout",
    "init_std",
    "initializer_range",
    "layer_norm_eps",
    "mlp_ratio",
    "rms_norm_eps",
    "rope_theta",
    "router_aux_loss_coef",
)
FLAGS = ("tie_word_embeddings", "use_sliding_window", "weight_tying")
OBJECTS = ("quantization_config", "rope_parameters", "rope_scaling")  # False stands for null in RND1's
DTYPES = ("dtype", "torch_dtype")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_fields(content: Mapping[str, Any]) -> None:
    """Check sizes, numbers, flags, objects, dtypes and token ids. Null and unknown fields are not checked.

    Args:
        content: of a config.json.

    Raises:
        ValueError: a field is of the wrong kind, or out of its range.

    Example:
        >>> check_fields({"head_dim": 0})
        Traceback (most recent call last):
        ...
        ValueError: head_dim in config.json must be a whole number of at least 1, got 0
    """
    for names, fits, rule in _RULES:
        for name in names:
            value = content.get(name)
            if value is not None and not fits(value):
                raise ValueError(f"{name} in config.json must be {rule}, got {value!r}")


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _is_token(value: object) -> bool:
    """Ids below 0 stand for no token in some files; several tokens may end a sequence."""
    return type(value) is int or (isinstance(value, list) and all(type(entry) is int for entry in value))


def _is_dtype(value: object) -> bool:
    named = isinstance(value, str) and getattr(torch, value.removeprefix("torch."), None)
    return value == "auto" or (isinstance(named, torch.dtype) and named.is_floating_point)


_RULES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (SIZES, _is_size, "a whole number of at least 1"),
    (NUMBERS, _is_number, "a finite number of at least 0"),
    (FLAGS, lambda value: isinstance(value, bool), "true or false"),
    (OBJECTS, lambda value: value is False or isinstance(value, dict), "an object or null"),
    (DTYPES, _is_dtype, "the name of a floating-point dtype of torch"),
    (TOKENS, _is_token, "a token id"),
)
