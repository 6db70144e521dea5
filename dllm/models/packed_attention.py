"""Attention of rows that are packed into one, on a CPU: an implementation of transformers' interface.

Under the name "packed_sdpa" a model of transformers takes packed rows as it does under flash attention: one long row,
with `position_ids` that start anew in each of its rows and `cu_seq_lens_q`, which says where they end. Within each row
attention is :func:`dllm_kernels.packed_attention`, or PyTorch's where that does not serve. Without `cu_seq_lens_q` it
is "sdpa", with the same masks.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dllm.fast.attention import PACKED, attention_of
from dllm.fast.compiled.attention import is_measured_here
from dllm.fast.model import input_embedding, is_diffusion_gemma, unwrapped
from dllm_kernels import _impl
from dllm_kernels.attention.api import MULTIPLE

_UNSERVED = ("softcap", "s_aux", "position_bias")  # of other implementations; a model that needs one has it
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def with_packed_attention(model: nn.Module) -> nn.Module:
    """Let a model's attention take packed rows, in place, so that samplers run rows of any lengths in one forward,
    without padding. Its logits change in their last bits only.

    Nothing changes where that would bring nothing, or has not been measured: on a GPU, on a CPU without AVX-512,
    without the C++ extension, under another attention than "sdpa", for DiffusionGemma, and for classes that are not
    transformers' own or do not use its interface (ModernBERT in 4.57).

    Returns:
        The same model.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = BertForMaskedLM(BertConfig(**size, attn_implementation="eager"))
        >>> attention_of(with_packed_attention(model))
        'eager'
    """
    inner = unwrapped(model)
    on_cpu = input_embedding(inner).device.type == "cpu"
    if attention_of(inner) == "sdpa" and on_cpu and _uses_interface(inner) and is_measured_here():
        inner.set_attn_implementation(PACKED)
    return model


def _uses_interface(model: nn.Module) -> bool:
    """Whether a model's class uses the interface, by transformers' own judgement, and asks nowhere for a name."""
    ours = type(model).__module__.partition(".")[0] == "transformers" and not is_diffusion_gemma(model)
    return ours and type(model)._can_set_attn_implementation()


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it; returns [B, T, heads, d].

    Args:
        query, key, value: [B, heads, T, d]; B is 1 where rows are packed.
        attention_mask: not read where rows are packed.
        sliding_window: a query sees keys less than so many tokens away.
        cu_seq_lens_q: int32 [rows + 1], where packed rows begin and end; None: rows are not packed.

    Raises:
        ValueError: rows are packed, and queries are not as many as keys, or the model needs what is not offered.
    """
    if cu_seq_lens_q is None:
        options = dict(dropout=dropout, scaling=scaling, is_causal=is_causal, sliding_window=sliding_window)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **options, **kwargs)
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise ValueError(f"packed rows are one long row without a cache, got {list(query.shape)} and {list(key.shape)}")
    if unserved := [name for name in _UNSERVED if kwargs.get(name) is not None]:
        raise ValueError(f"{PACKED} does not offer {', '.join(unserved)}")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if causal or dropout or not _is_served(query, key, value):
        out = _row_by_row(query, key, value, cu_seq_lens_q, sliding_window, scale, causal=causal, dropout=dropout)
    else:
        from dllm_kernels.attention.cpu import packed_attention  # torch knows its operator only once it is built

        out = packed_attention(query, key, value, cu_seq_lens_q, sliding_window, scale)
    return out.transpose(1, 2).contiguous(), None


def _is_served(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether our kernel takes these."""
    width = query.shape[-1]
    if query.device.type != "cpu" or query.dtype not in _DTYPES or width % MULTIPLE or value.shape[-1] != width:
        return False
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return False
    return all(x.stride(-1) == 1 and x.dtype == query.dtype for x in (query, key, value)) and _is_faster(query.dtype)


def _is_faster(dtype: torch.dtype) -> bool:
    """Whether our kernel is there, and not slower: PyTorch's bfloat16 uses matrix tiles where a CPU has them."""
    return _impl.why_not_cpu() is None and not (dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported())


_is_faster._dynamo_marked_constant = True  # torch.compile keeps its answer


def _row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    window: int | None,
    scale: float,
    *,
    causal: bool,
    dropout: float,
) -> Tensor:
    """[1, heads, T, d] by PyTorch's attention; waits for the device."""
    shared = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(shared, 1) if shared > 1 else x for x in (key, value))
    outs = []
    for begin, end in itertools.pairwise(ends.tolist()):
        mask = None
        if window is not None and window < end - begin:
            place = torch.arange(end - begin, device=query.device)
            back = place[:, None] - place
            mask = (back.abs() < window) & (back >= 0) if causal else back.abs() < window
        row = (x[:, :, begin:end] for x in (query, key, value))
        only_causal = causal and mask is None
        outs.append(F.scaled_dot_product_attention(*row, mask, dropout, is_causal=only_causal, scale=scale))
    return torch.cat(outs, 2)


AttentionInterface.register(PACKED, packed_sdpa)
AttentionMaskInterface.register(PACKED, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
