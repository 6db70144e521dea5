"""Causal language models of transformers made bidirectional: by hooks, without a copy of any modelling file.

Such a model builds one causal mask per forward and passes it to every layer. A hook before the decoder replaces it by a
4-D mask, which the decoder passes on unchanged. A hook before each attention module sets `is_causal=False`. The
configuration and the weights are not changed.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from dllm.fast.attention import PACKED

# names, as transformers imports them lazily
SUPPORTED = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "Glm4MoeForCausalLM",
)
SUPPORTED_TYPES = ("llama", "qwen2", "qwen3", "qwen3_moe", "glm4_moe")  # of their configurations
ATTENTION = ("eager", "sdpa", "flex_attention", PACKED)  # and every kind of flash attention, which takes no 4-D mask


def bidirectional(model: nn.Module) -> nn.Module:
    """Make a causal model bidirectional, in place; :func:`causal` undoes it.

    `attention_mask` may then be

    - None: nothing is padded. No mask is built, attention uses its fast kernels, and the host does not wait;
    - [B, L], 0 where a row is padded: no query attends to those keys. If nothing is padded, pass None: a mask of ones
      is not recognised, because that would mean waiting for the device;
    - [B or 1, 1, L or 1, L], bool (True: visible) or additive, used unchanged. With a cache in `past_key_values` it is
      bool, over the keys that the cache returns. Flex attention takes such a mask as bool only. Flash attention takes
      only [B, 1, 1, L], as bool, and none with a cache.

    The logits at p remain a prediction of the token at p + 1, so those for position p are read at p - 1 (a right
    shift). Packed sequences are not separated by position ids that start again, but by a 4-D mask, or under flash
    attention by `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q` and `max_length_k` of transformers.

    The hooks survive copies, training and gradient checkpointing. They are not saved, so call this again after loading.
    A second call changes nothing.

    Args:
        model: a Llama, Qwen2, Qwen3, Qwen3-MoE or GLM-4-MoE `ForCausalLM` of transformers, or a module that wraps one
            (PEFT, DDP). Its attention is "eager", "sdpa", "packed_sdpa", "flex_attention" or a kind of flash attention,
            such as "flash_attention_2".

    Returns:
        The same model.

    Raises:
        ValueError: another architecture, or layers with a sliding window. In a forward: another attention, a mask of
            another shape, or use_cache.

    Source: A2D and Dream (arXiv:2508.15487), masked-diffusion models that began as causal ones.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = bidirectional(LlamaForCausalLM(LlamaConfig(**size)))
        >>> last = [model(torch.tensor([[5, 6, token]])).logits[0, 0] for token in (7, 8)]
        >>> torch.equal(*last)  # the first position attends to the last
        False
    """
    decoder = _decoder(model)
    sliding = [
        i for i, kind in enumerate(getattr(decoder.config, "layer_types", None) or ()) if kind != "full_attention"
    ]
    if sliding:
        raise ValueError(f"every layer must attend to the whole sequence, got a sliding window in layers {sliding}")
    if not _hooked(decoder):
        decoder.register_forward_pre_hook(_before_decoder, with_kwargs=True)
        for layer in decoder.layers:
            layer.self_attn.register_forward_pre_hook(_before_attention, with_kwargs=True)
    return model


def causal(model: nn.Module) -> nn.Module:
    """Undo :func:`bidirectional`, in place. A causal model is not changed.

    Returns:
        The same model.

    Raises:
        ValueError: another architecture.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = causal(bidirectional(LlamaForCausalLM(LlamaConfig(**size))))
        >>> first = [model(torch.tensor([[5, 6, token]])).logits[0, 0] for token in (7, 8)]
        >>> torch.equal(*first)
        True
    """
    decoder = _decoder(model)
    for module in (decoder, *(layer.self_attn for layer in decoder.layers)):
        for key in _hooked(module):
            del module._forward_pre_hooks[key], module._forward_pre_hooks_with_kwargs[key]
    return model


def _decoder(model: nn.Module) -> nn.Module:
    kinds = tuple(getattr(transformers, name) for name in SUPPORTED)
    found = [module for module in model.modules() if isinstance(module, kinds)]
    if len(found) != 1:
        raise ValueError(f"the model must be one of {', '.join(SUPPORTED)}, got {type(model).__name__}")
    return found[0].model


def _hooked(module: nn.Module) -> list[int]:
    """Keys of our hooks in a module. They are found by function, which also works in a copy of the module."""
    ours = (_before_decoder, _before_attention)
    return [key for key, hook in module._forward_pre_hooks.items() if hook in ours]


def _before_decoder(decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Replace the mask by a 4-D one, and turn off the model's own cache."""
    names = list(inspect.signature(type(decoder).forward).parameters)[1:] if args else []
    given = dict(zip(names, args, strict=False)) | kwargs
    attention = decoder.config._attn_implementation
    flash = "flash" in attention
    if attention not in ATTENTION and not flash:
        raise ValueError(
            f"a bidirectional model's attention must be {', '.join(ATTENTION)} or flash attention, got {attention}"
        )
    cache, mask = given.get("past_key_values"), given.get("attention_mask")
    four_dimensional = isinstance(mask, Tensor) and mask.dim() == 4
    if given.get("use_cache") or (cache is not None and not four_dimensional):
        raise ValueError(
            "a bidirectional model keeps no cache of its own: expected no use_cache, and past_key_values only with a "
            "4-D mask over the keys that it hands out"
        )
    inputs = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
    mask = mask if cache is not None and mask.dtype == torch.bool else _mask(mask, inputs)
    if flash:
        mask = _flash(mask, attention, inputs.shape[0], beside_cache=cache is not None)
    elif attention == "flex_attention":
        mask = _flex(mask, inputs.shape[0], inputs.shape[1])
    elif attention == "eager" and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=decoder.dtype).masked_fill(~mask, torch.finfo(decoder.dtype).min)
    return (), given | {"attention_mask": mask, "use_cache": False}


def _mask(mask: Tensor | None, inputs: Tensor) -> Tensor:
    """A 4-D mask that broadcasts to [B, heads, queries, keys]; [1, 1, 1, 1] if every key is visible."""
    batch, length = inputs.shape[:2]
    if mask is None:
        return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=inputs.device)
    if isinstance(mask, Tensor) and mask.shape == (batch, length):
        return (mask != 0)[:, None, None, :].to(inputs.device)
    if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[-1] == length:
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise ValueError(f"a 4-D attention_mask must be bool, or floating-point and additive, got {mask.dtype}")
        return mask
    got = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    raise ValueError(f"attention_mask must be None, [{batch}, {length}] or [B, 1, L, {length}], got {got}")


def _sees_everything(mask: Tensor | BlockMask) -> bool:
    """Whether every key is visible under this mask."""
    return isinstance(mask, Tensor) and mask.shape == (1, 1, 1, 1)


def _flex(mask: Tensor, batch: int, queries: int) -> Tensor | BlockMask:
    """The mask as flex attention takes it: a BlockMask.

    Additive masks are not supported: reading scores from a tensor crashes in torch 2.13 when compiled for a CPU.
    """
    if _sees_everything(mask):
        return mask
    if mask.dtype != torch.bool:
        raise ValueError(f"under flex_attention a 4-D attention_mask must be bool, got {mask.dtype}")
    visible = mask.expand(batch, 1, queries, mask.shape[-1]).contiguous()
    return create_block_mask(
        lambda row, head, query, key: visible[row, 0, query, key],
        batch,
        None,
        *visible.shape[2:],
        device=visible.device,
    )


def _flash(mask: Tensor, attention: str, batch: int, *, beside_cache: bool) -> Tensor:
    """The mask checked for flash attention, [B, 1, 1, L]."""
    if _sees_everything(mask):
        return mask
    if beside_cache or mask.dtype != torch.bool or mask.shape[2] != 1:
        rule = "None: it takes no mask over kept keys" if beside_cache else "None or [B, L]: it takes no 4-D mask"
        raise ValueError(f"under {attention} attention_mask must be {rule}; got {mask.dtype} {list(mask.shape)}")
    return mask.expand(batch, -1, -1, -1)


def _before_attention(attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Set `is_causal=False`, and drop a mask under which every key is visible, as the fast kernels take none.

    Flash attention gets the mask as [B, L] and no position ids, which transformers would search for packed sequences,
    waiting for the device.
    """
    mask = kwargs["attention_mask"]
    changed = {"attention_mask": None if _sees_everything(mask) else mask, "is_causal": False}
    if "flash" in attention.config._attn_implementation:
        changed["position_ids"] = None
        if changed["attention_mask"] is not None:
            changed["attention_mask"] = mask[:, 0, 0]
    return args, kwargs | changed


_before_attention.drops_full_masks = True  # asked for by dllm.fast.attention
