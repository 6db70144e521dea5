"""Checks of a call of DiffusionGemma's own `generate` before anything runs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dllm.fast.uniform.model import DiffusionGemma


def check_generate(parts: DiffusionGemma, input_ids: Tensor, arguments: Mapping[str, object]) -> None:
    """Check a call.

    Args:
        parts: of the model.
        input_ids: int64 [B, P].
        arguments: the others of `generate`, by name.

    Raises:
        ValueError: a token of the prompts or of `decoder_input_ids` is outside the vocabulary; a prompt holds the image
            token and no image is given; or the cache is static and the rows exceed the sliding window, where
            transformers writes keys of a canvas over those of the context.
    """
    _check_tokens("input_ids", input_ids, parts.vocab_size)
    given = arguments.get("decoder_input_ids")
    if isinstance(given, Tensor):
        if given.shape != (len(input_ids), parts.canvas_length):
            raise ValueError(
                f"decoder_input_ids must be {[len(input_ids), parts.canvas_length]}, a canvas for each row, "
                f"got {list(given.shape)}"
            )
        _check_tokens("decoder_input_ids", given, parts.vocab_size)
    shown = any(arguments.get(name) is not None for name in ("pixel_values", "mm_encoder_outputs"))
    if not shown and bool((input_ids == parts.image_token_id).any()):
        raise ValueError(
            f"input_ids hold the image token {parts.image_token_id}, so pixel_values must be given: the processor's "
            "apply_chat_template returns both with return_dict=True"
        )
    cache = arguments.get("past_key_values")
    if is_static(parts.model, arguments):
        before = 0 if cache is None else int(cache.get_seq_length())
        context = before + input_ids.shape[1] + (_canvases(parts, arguments) - 1) * parts.canvas_length
        if context >= parts.window:
            raise ValueError(
                f"with a static cache transformers computes wrong canvases behind {parts.window} columns or more, the "
                f"sliding window, got {context}: leave cache_implementation out"
            )


def is_static(model: nn.Module, arguments: Mapping[str, object]) -> bool:
    """Whether a call, or the model's settings, ask for a static cache."""
    if getattr(arguments.get("past_key_values"), "is_compileable", False):
        return True
    named = (_setting(source, "cache_implementation") for source in (arguments, _stated(model, arguments)))
    return any("static" in str(name or "") for name in named)


def _canvases(parts: DiffusionGemma, arguments: Mapping[str, object]) -> int:
    """How many canvases the call generates, at most."""
    new = arguments.get("max_new_tokens") or _setting(_stated(parts.model, arguments), "max_new_tokens") or 256
    return -(-int(new) // parts.canvas_length)


def _stated(model: nn.Module, arguments: Mapping[str, object]) -> object:
    return arguments.get("generation_config") or getattr(model, "generation_config", None)


def _setting(source: object, name: str) -> object:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)


def _check_tokens(name: str, tokens: Tensor, vocab_size: int) -> None:
    if tokens.numel() == 0:
        return
    low, high = torch.stack(tokens.aminmax()).tolist()
    if low < 0 or high >= vocab_size:
        raise ValueError(f"{name} must lie in [0, {vocab_size}), got {low if low < 0 else high}")
