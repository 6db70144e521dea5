"""Attention that is told no more than flash attention is, in plain torch: what runs beside it runs without a GPU.

As transformers' `flash_attention_forward` it takes a mask [B, L] or None, reads in `cu_seq_lens_q` where packed rows
end (or, for a batch of one, in position ids that start anew), knows windows, and is causal unless told otherwise. It
raises an AssertionError for what flash attention would misread.
"""

from __future__ import annotations

import torch
from torch import Tensor

NAME = "flash_attention_stand_in"


def flash_stand_in(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    **_,
) -> tuple[Tensor, None]:
    batch, queries, keys = len(query), query.shape[2], key.shape[2]
    assert not (module.is_causal if is_causal is None else is_causal), "every position sees all"
    at_query, at_key = torch.arange(queries)[:, None], torch.arange(keys)
    seen = torch.ones(1, 1, queries, keys, dtype=torch.bool)
    ends = cu_seq_lens_q
    if attention_mask is not None:
        assert attention_mask.shape == (batch, keys) and queries == keys, list(attention_mask.shape)
        seen = (attention_mask != 0)[:, None, None, :]
    elif ends is None and batch == 1 and position_ids is not None and bool((position_ids.diff() != 1).any()):
        starts = (position_ids[0] == position_ids.min()).nonzero().flatten()
        ends = torch.cat([starts, torch.tensor([queries])])
    if attention_mask is None and ends is not None:
        assert batch == 1 and queries == keys == int(ends[-1])
        if cu_seq_lens_q is not None:
            assert ends.dtype == torch.int32 and torch.equal(ends, cu_seq_lens_k)
            assert type(max_length_q) is type(max_length_k) is int and max_length_q >= int(ends.diff().max())
        row = torch.searchsorted(ends[1:].contiguous(), torch.arange(queries), right=True)
        seen = (row[:, None] == row)[None, None]
    if sliding_window is not None:
        seen = seen & ((at_query - at_key).abs() < sliding_window)
    heads = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1)
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def register() -> str:
    """Its name, under which transformers knows it from now on."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register(NAME, flash_stand_in)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    return NAME
