"""What fields of config.json must be, whatever the model: checked before transformers computes with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from dllm.fast.model import MARKER

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
    "init_std",
    "initializer_range",
    "layer_norm_eps",
    "mlp_ratio",
    "partial_rotary_factor",
    "rms_norm_eps",
    "router_aux_loss_coef",
)
DROPOUTS = ("attention_dropout", "embedding_dropout", "output_dropout", "residual_dropout")
FLAGS = ("tie_word_embeddings", "use_sliding_window", "weight_tying")
OBJECTS = ("quantization_config", "rope_parameters", "rope_scaling")  # False stands for null in RND1's
DTYPES = ("dtype", "torch_dtype")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_fields(content: Mapping[str, Any]) -> None:
    """Check sizes, numbers, flags, objects, dtypes, token ids and the number of chosen experts. Null and unknown fields
    are not checked.

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
    chosen, experts = content.get("num_experts_per_tok"), content.get("num_experts")
    if chosen is not None and experts is not None and chosen > experts:
        raise ValueError(f"num_experts_per_tok in config.json must be at most num_experts = {experts}, got {chosen}")


def check_marker(marker: Mapping[str, Any]) -> None:
    """Check what a saved model of a family says of itself. Null fields are not checked.

    Args:
        marker: the object `masked_diffusion` of a config.json.

    Raises:
        ValueError: a field is of the wrong kind, or out of its range.

    Example:
        >>> check_marker({"right_shift": 7})
        Traceback (most recent call last):
        ...
        ValueError: right_shift of masked_diffusion in config.json must be true or false, got 7
    """
    for name, (fits, rule) in _MARKER_RULES.items():
        value = marker.get(name)
        if value is not None and not fits(value):
            raise ValueError(f"{name} of {MARKER} in config.json must be {rule}, got {value!r}")


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


_MARKER_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bidirectional": (lambda value: isinstance(value, bool), "true or false"),
    "right_shift": (lambda value: isinstance(value, bool), "true or false"),
    "block_size": (_is_size, "a whole number of at least 1"),
    "official": (lambda value: isinstance(value, dict), "an object"),
}
_RULES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (SIZES, _is_size, "a whole number of at least 1"),
    (NUMBERS, _is_number, "a finite number of at least 0"),
    (DROPOUTS, lambda value: _is_number(value) and value < 1, "a number from 0 to below 1"),
    (("rope_theta",), lambda value: _is_number(value) and value > 0, "a finite number above 0"),
    (FLAGS, lambda value: isinstance(value, bool), "true or false"),
    (OBJECTS, lambda value: value is False or isinstance(value, dict), "an object or null"),
    (DTYPES, _is_dtype, "the name of a floating-point dtype of torch"),
    (TOKENS, _is_token, "a token id"),
    (("mask_token_id",), lambda value: type(value) is int, "a token id"),
)
