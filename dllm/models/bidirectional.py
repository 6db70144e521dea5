"""Causal language models of transformers made bidirectional: by hooks, without a copy of any modelling file.

What makes such a model causal is one mask, built once per forward and handed to every layer. A hook before the decoder
gives it another mask, of four dimensions, which the decoder passes on as it is; a hook before each attention module
says that nothing is causal besides. Nothing is written to the configuration or the weights.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

SERVED = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")  # names: transformers imports them when asked
SERVED_TYPES = ("llama", "qwen2", "qwen3")  # of their configurations
ATTENTION = ("eager", "sdpa", "flex_attention")  # and all that is flash attention, which takes no 4-D mask


def bidirectional(model: nn.Module) -> nn.Module:
    """Let every position see every real position, in place; :func:`causal` takes it back.

    From then on `attention_mask` may be

    - None: all positions are real. No mask is built, attention runs its fast kernels, the host waits for nothing;
    - [B, L], 0 where a row is padded: keys there are seen by nobody. It is not read back to see whether it is all ones:
      where nothing is padded, pass None;
    - [B or 1, 1, L or 1, L]: taken as it is, bool (True: seen) or additive. Beside a cache that is handed in as
      `past_key_values`: bool, over the keys that it hands out. Flex attention takes such a mask as bool only. Flash
      attention takes it only where it says nothing of queries ([B, 1, 1, L]), as bool, and none beside a cache.

    The logits at p still are what the model was trained for, a prediction of the token at p + 1: those of position p
    are read at p - 1 (a right shift). Position ids that start anew do not separate packed sequences; a 4-D mask does,
    and under flash attention `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q` and `max_length_k`, as transformers takes
    them.
    The hooks survive copies, training and gradient checkpointing; they are not saved: call this again after loading.
    A second call changes nothing.

    Args:
        model: a Llama, Qwen2 or Qwen3 `ForCausalLM` of transformers, or a module that wraps one (PEFT, DDP); attention
            "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3" or another kind of the latter.

    Returns:
        The same model.

    Raises:
        ValueError: another architecture; layers with a sliding window. In a forward: another attention, a mask of
            another shape, use_cache.

    Source: A2D and Dream (arXiv:2508.15487), masked-diffusion models that began as causal ones.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = bidirectional(LlamaForCausalLM(LlamaConfig(**size)))
        >>> last = [model(torch.tensor([[5, 6, token]])).logits[0, 0] for token in (7, 8)]
        >>> torch.equal(*last)  # the first position sees the last
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
    """Undo :func:`bidirectional`, in place; a model that is causal stays so.

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
    kinds = tuple(getattr(transformers, name) for name in SERVED)
    found = [module for module in model.modules() if isinstance(module, kinds)]
    if len(found) != 1:
        raise ValueError(f"the model must be one of {', '.join(SERVED)}, got {type(model).__name__}")
    return found[0].model


def _hooked(module: nn.Module) -> list[int]:
    """Keys of our hooks: found by the function, as a handle would not know a copy of the module."""
    ours = (_before_decoder, _before_attention)
    return [key for key, hook in module._forward_pre_hooks.items() if hook in ours]


def _before_decoder(decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Replace the mask by a 4-D one, and see that no cache is built."""
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
    """A 4-D mask, to be broadcast to [B, heads, queries, keys]; its last three sizes are 1 where all is seen."""
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


def _says_nothing(mask: Tensor | BlockMask) -> bool:
    """Whether it is the mask under which all is seen."""
    return isinstance(mask, Tensor) and mask.shape == (1, 1, 1, 1)


def _flex(mask: Tensor, batch: int, queries: int) -> Tensor | BlockMask:
    """As flex attention takes it. (What is added to its scores it must not read from a tensor: compiled for a CPU it
    crashes in torch 2.13.)"""
    if _says_nothing(mask):
        return mask
    if mask.dtype != torch.bool:
        raise ValueError(f"under flex_attention a 4-D attention_mask must be bool, got {mask.dtype}")
    seen = mask.expand(batch, 1, queries, mask.shape[-1]).contiguous()
    return create_block_mask(
        lambda row, head, query, key: seen[row, 0, query, key], batch, None, *seen.shape[2:], device=seen.device
    )


def _flash(mask: Tensor, attention: str, batch: int, *, beside_cache: bool) -> Tensor:
    """[B, 1, 1, L]: what flash attention is told of it is [B, L]."""
    if _says_nothing(mask):
        return mask
    if beside_cache or mask.dtype != torch.bool or mask.shape[2] != 1:
        rule = "None: it takes no mask over kept keys" if beside_cache else "None or [B, L]: it takes no 4-D mask"
        raise ValueError(f"under {attention} attention_mask must be {rule}; got {mask.dtype} {list(mask.shape)}")
    return mask.expand(batch, -1, -1, -1)


def _before_attention(attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Drop the mask under which all is seen: only without one do the fast kernels serve.

    Flash attention gets [B, L], and no position ids: it would look in them for packed sequences, and wait for that.
    """
    mask = kwargs["attention_mask"]
    told = {"attention_mask": None if _says_nothing(mask) else mask, "is_causal": False}
    if "flash" in attention.config._attn_implementation:
        told["position_ids"] = None
        if told["attention_mask"] is not None:
            told["attention_mask"] = mask[:, 0, 0]
    return args, kwargs | told
