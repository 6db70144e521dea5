"""What a model is shown of a row: the blocks up to a column's own, or a few columns beside what is kept of the others.

A view stands in the model's place: called with a canvas int64 [1, L], it answers with logits [1, L, V]. The models are
Llama, Qwen2, Qwen3 and Qwen3-MoE of transformers, causal or made bidirectional: no view leaves it to them who sees
whom.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from types import SimpleNamespace

import torch
from torch import Tensor

SERVED = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM")


class BlockCausal:
    """Columns see their own block and those before it. All is computed anew in each call, from column 0 to before `end`
    (None: the row's end); what lies behind does not exist yet, its logits are 0.

    The prompt's n tokens end where a block ends: with pad = -n mod size the block of column t is (t + pad) // size, and
    the prompt's first block is the shorter one. Positions count the row's own tokens from 0.
    """

    def __init__(self, model, prompt_length: int, block_size: int):
        self.model, self.block_size, self.pad = model, block_size, -prompt_length % block_size
        self.end: int | None = None

    def __call__(self, input_ids: Tensor) -> SimpleNamespace:
        ids = input_ids[:, : self.end]
        column = torch.arange(ids.shape[1], device=ids.device)
        block = (column + self.pad) // self.block_size
        hidden = block[None, :] > block[:, None]  # a key of a later block than the query's
        mask = torch.zeros(hidden.shape, device=ids.device).masked_fill(hidden, torch.finfo(torch.float32).min)
        with _eager(self.model):
            said = self.model(
                input_ids=ids, attention_mask=mask[None, None], position_ids=column[None], use_cache=False
            ).logits
        logits = said.new_zeros(1, input_ids.shape[1], said.shape[-1])
        logits[:, : ids.shape[1]] = said
        return SimpleNamespace(logits=logits)


class Kept:
    """Each call runs the columns `start` to before `end` and no others. Every column sees every column, and one that
    does not run stands there with the keys, values and logits of the last call that ran it.

    The layers are run by hand, so that what is kept is plain to see. passes: 2 where guidance reads the row twice in a
    step; the passes come in turn, each with a memory of its own.
    """

    def __init__(self, model, *, passes: int = 1):
        assert type(model).__name__ in SERVED, f"expected one of {SERVED}, got {type(model).__name__}"
        kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        assert kinds == {"full_attention"}, f"every layer must attend to the whole row, got {kinds}"
        self.start, self.end = 0, None
        self._memories = cycle([_Memory(model) for _ in range(passes)])

    def __call__(self, input_ids: Tensor) -> SimpleNamespace:
        memory = next(self._memories)
        memory.run(input_ids, torch.arange(input_ids.shape[1], device=input_ids.device)[self.start : self.end])
        return SimpleNamespace(logits=memory.logits)


class _Memory:
    """Of every layer keys and values [1, heads, L, size], rotated; of the head logits [1, L, V]."""

    def __init__(self, model):
        self.model = model
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.logits: Tensor | None = None

    def run(self, input_ids: Tensor, columns: Tensor) -> None:
        """Replace what is kept of `columns`; what has never run is NaN."""
        body, length = self.model.model, input_ids.shape[1]
        x = body.embed_tokens(input_ids[:, columns])
        cos, sin = body.rotary_emb(x, columns[None])
        for number, layer in enumerate(body.layers):
            attention, y = layer.self_attn, layer.input_layernorm(x)
            q = _rotated(_per_head(attention, "q", y), cos, sin)
            k = _rotated(_per_head(attention, "k", y), cos, sin)
            keys = self.keys[number] = _replaced(self.keys.get(number), k, columns, length)
            values = self.values[number] = _replaced(
                self.values.get(number), _per_head(attention, "v", y), columns, length
            )
            x = x + attention.o_proj(_attend(q, keys, values).transpose(1, 2).flatten(2))
            added = layer.mlp(layer.post_attention_layernorm(x))
            x = x + (added[0] if isinstance(added, tuple) else added)  # a mixture of transformers 4 gives routes, too
        self.logits = _replaced(self.logits, self.model.lm_head(body.norm(x)), columns, length)


def _per_head(attention, name: str, y: Tensor) -> Tensor:
    """The projection [1, heads, n, size]; Qwen3 normalizes each head's queries and keys."""
    projected = getattr(attention, f"{name}_proj")(y).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{name}_norm", None)
    return (projected if norm is None else norm(projected)).transpose(1, 2)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The pairs (i, i + size/2), each turned by its angle; cos and sin [1, n, size]."""
    a, b = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-b, a], dim=-1) * sin[:, None]


def _attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q k / sqrt(size)) v; groups of query heads share a head of keys."""
    sharing = q.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(sharing, dim=1), values.repeat_interleave(sharing, dim=1)
    return (q @ keys.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ values


def _replaced(kept: Tensor | None, new: Tensor, columns: Tensor, length: int) -> Tensor:
    """`kept` [..., L, d] with `new` [..., n, d] in its columns."""
    kept = new.new_full((*new.shape[:-2], length, new.shape[-1]), torch.nan) if kept is None else kept.clone()
    kept[..., columns, :] = new
    return kept


@contextmanager
def _eager(model) -> Iterator[None]:
    """Attention that adds the mask it is given and knows no other."""
    config = getattr(model, "config", None)
    if config is None:
        yield
        return
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before
