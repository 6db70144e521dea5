"""Modules with the interface of Nemotron-Labs-Diffusion's published code, made to follow a mask of four dimensions.

That code switches its attention by two flags, for a whole batch: `use_causal_mask` of the forward, and `diffusion_lm`
of each attention module, under which no mask is used. Both kinds of attention are masks here, so that rows of any
lengths run together and keys and values are written in place.

The published code itself has not been run with this: it was tested on a module with that interface
(`tests/nemotron_models.py`). A model that does not follow its masks is refused before anything is generated
(:func:`dllm.fast.sampling.cache_layout.find_layout`).
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dllm.fast.attention import attention_of
from dllm.fast.model import unwrapped

FLAG = "diffusion_lm"


class _Seen(NamedTuple):
    """What the layers of a forward are told: the mask as their attention takes it, and positions int64 [b, W]."""

    mask: Tensor
    positions: Tensor | None


_of_this_thread = threading.local()


def follow_masks(model: nn.Module) -> nn.Module:
    """Let a model whose attention modules have a flag `diffusion_lm` follow masks of four dimensions, in place.

    A forward with a bool mask [B, 1, W, K] and `past_key_values` then runs as a causal one of that code, with the mask
    in the place of the causal one; positions are those of `position_ids`. Other forwards, and so the model's own
    `generate`, are as before. A model without the flag is not changed.

    Returns:
        The same model.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> follow_masks(layer) is layer
        True
    """
    encoder = getattr(unwrapped(model), "encoder", None)
    layers = [layer.self_attn for layer in getattr(encoder, "layers", ()) if hasattr(layer, "self_attn")]
    flagged = [attention for attention in layers if hasattr(attention, FLAG)]
    if not flagged or _before_encoder in encoder._forward_pre_hooks.values():
        return model
    encoder.register_forward_pre_hook(_before_encoder, with_kwargs=True)
    encoder.register_forward_hook(_after_encoder, always_call=True)
    for attention in flagged:
        attention.register_forward_pre_hook(_before_attention, with_kwargs=True)
        attention.register_forward_hook(_after_attention, always_call=True)
    return model


def _before_encoder(encoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Keep the mask for the layers, and ask for a causal forward that writes its cache."""
    mask = kwargs.get("attention_mask")
    if kwargs.get("past_key_values") is None or not (isinstance(mask, Tensor) and mask.dim() == 4):
        return None
    if attention_of(encoder) == "eager" and mask.dtype == torch.bool:
        dtype = next(encoder.parameters()).dtype
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    _of_this_thread.seen = _Seen(mask, kwargs.get("position_ids"))
    return args, kwargs | {"attention_mask": None, "use_cache": True, "use_causal_mask": True}


def _after_encoder(encoder: nn.Module, args: tuple, output: object) -> None:
    _of_this_thread.seen = None


def _before_attention(attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Give a layer the mask. Its queries are scaled by position, which it takes from `cache_position`."""
    seen = getattr(_of_this_thread, "seen", None)
    if seen is None:
        return None
    attention._flag_before, attention.diffusion_lm = attention.diffusion_lm, False
    changed = {"attention_mask": seen.mask}
    if kwargs.get("cache_position") is not None and seen.positions is not None:
        changed["cache_position"] = seen.positions[:, None, :]
    return args, kwargs | changed


def _after_attention(attention: nn.Module, args: tuple, output: object) -> None:
    if getattr(attention, "_flag_before", None) is not None:
        attention.diffusion_lm, attention._flag_before = attention._flag_before, None
