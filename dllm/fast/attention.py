"""Which attention masks a model's attention implementation takes, and which kernels must not be used.

Of transformers' implementations, "eager", "sdpa" and "flex_attention" take a mask of four dimensions. Flash attention
does not: it takes rows padded at their ends (a mask [B, L]), and rows packed one after the other. Our own "packed_sdpa"
(:mod:`dllm.models.packed_attention`) takes masks as "sdpa" does, and packed rows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Up to so many columns attention runs without cuDNN. At 350 TFLOP/s in place of 500 it takes 2 % of a body of 8B longer
# then, and twice that with twice the columns; these rates are others', for an H100.
COLUMNS_WITHOUT_CUDNN = 1024

PACKED = "packed_sdpa"


def attention_of(model: nn.Module) -> str | None:
    """The name of the model's attention implementation, None where its configuration has none.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> attention_of(LlamaForCausalLM(LlamaConfig(**size, attn_implementation="eager")))
        'eager'
    """
    return getattr(getattr(model, "config", None), "_attn_implementation", None)


def is_flash(model: nn.Module) -> bool:
    """Whether the model's attention is a kind of flash attention ("flash_attention_2", "flash_attention_3", kernels of
    the Hub), which takes no mask of four dimensions."""
    return "flash" in (attention_of(model) or "")


def is_packed(model: nn.Module) -> bool:
    """Whether the model's attention is "packed_sdpa" on a CPU, where rows of any lengths run packed, and each has the
    same bits in any company."""
    weight = next(model.parameters(), None)
    return attention_of(model) == PACKED and weight is not None and weight.device.type == "cpu"


def window_of(model: nn.Module) -> int | None:
    """How far a position of the model sees in some of its layers, in columns; None where every layer sees all.

    Example:
        >>> from transformers import MistralConfig, MistralForCausalLM
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=8)
        >>> window_of(MistralForCausalLM(MistralConfig(**size, sliding_window=16)))
        16
    """
    config = getattr(model, "config", None)
    kinds = getattr(config, "layer_types", None) or ("sliding_attention",)  # where layers are all of one kind
    return getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None


def drops_full_masks(model: nn.Module) -> bool:
    """Whether a mask [1, 1, 1, 1], under which all is visible, never reaches the model's attention: a hook before its
    attention modules, which says so by an attribute `drops_full_masks`, replaces it by None.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from dllm.models import bidirectional
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = LlamaForCausalLM(LlamaConfig(**size))
        >>> drops_full_masks(model), drops_full_masks(bidirectional(model))
        (False, True)
    """
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    return any(getattr(hook, "drops_full_masks", False) for hook in hooks)


def full_mask(model: nn.Module, keys: int, device: torch.device) -> Tensor:
    """A mask under which every key is visible, to be broadcast: bool [1, 1, 1, keys], or [1, 1, 1, 1] where a model
    drops that. Attention kernels for GPUs refuse a mask that is broadcast along the keys.

    Args:
        model: that gets it.
        keys: number of keys that its attention reads.
        device: of the mask.
    """
    return torch.ones(1, 1, 1, 1 if drops_full_masks(model) else keys, dtype=torch.bool, device=device)


class _CudnnSwitch:
    """torch's switch for cuDNN's attention, which is the process's: off while anybody wants it off, then as before."""

    def __init__(self):
        self._lock, self._wanting, self._before = threading.Lock(), 0, True

    @contextmanager
    def off(self) -> Iterator[None]:
        with self._lock:
            if self._wanting == 0:
                self._before = torch.backends.cuda.cudnn_sdp_enabled()
                torch.backends.cuda.enable_cudnn_sdp(False)
            self._wanting += 1
        try:
            yield
        finally:
            with self._lock:
                self._wanting -= 1
                if self._wanting == 0:
                    torch.backends.cuda.enable_cudnn_sdp(self._before)


_SWITCH = _CudnnSwitch()


@contextmanager
def without_cudnn(columns: int) -> Iterator[None]:
    """In this context scaled dot product attention over few columns does not use cuDNN, also in other threads.

    From torch 2.11 on cuDNN comes first on an H200. It makes a plan for each shape of its operands, which takes the
    host 23 to 37 ms. A batch that shrinks row by row, and prompts of any length, ask for one after the other; flash
    attention needs none. Warm-ups, captures and eager forwards of one shape take the same kernel.

    Example:
        >>> with without_cudnn(columns=192):
        ...     torch.backends.cuda.cudnn_sdp_enabled()
        False
    """
    if columns > COLUMNS_WITHOUT_CUDNN:
        yield
        return
    with _SWITCH.off():
        yield


def check_attention(
    model: nn.Module, *, block_causal: int | None, cache: str | None, padded: bool, columns: int
) -> None:
    """Check that the model's attention takes the mask that a call needs.

    Args:
        block_causal, cache: as :class:`dllm.fast.sampling.state.Policy` has them.
        padded: whether rows are of different lengths.
        columns: of the longest row.

    Raises:
        ValueError: it needs a mask of four dimensions, and the attention takes none, or would see by it what the model
            was not trained to see.
    """
    if block_causal is None and cache is None:
        return
    if (window := window_of(model)) is not None and columns > window:
        raise ValueError(
            "beside a cache, and where blocks see no later one, a mask of four dimensions replaces sliding windows, so "
            f"rows of {type(model).__name__}, some of whose layers see at most {window} columns, must be no longer; "
            f"got rows of {columns}"
        )
    if not is_flash(model):
        return
    name = attention_of(model)
    instead = "load the model with attn_implementation sdpa, eager or flex_attention"
    if block_causal is not None:
        raise ValueError(
            f"blocks that see no later one need a mask of four dimensions, and {name} takes none: {instead}"
        )
    if padded:
        raise ValueError(
            f"beside a {cache} cache rows must be of one length under {name}, which takes no mask over kept keys: "
            f"{instead}; got rows of different lengths"
        )
