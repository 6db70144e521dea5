"""Fast-dLLM's generate: a cache of keys and values per block, and as many tokens per step as a rule allows.

It is approximate for two reasons: tokens committed in one step are chosen independently, and cached keys and values
belong to an earlier canvas.

The first step of a block runs the whole canvas and caches all keys and values. With the "prefix" cache, later steps run
the block and everything after it, and every layer concatenates the cached columns on its left. With the "dual" cache
they run the block alone, and its new keys and values overwrite the cached ones. All rows of a batch are in the same
block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.baselines.llada import left_padded_canvas
from benchmarks.baselines.parallel import Rule, commit, scores_of
from benchmarks.card_loop import Noise, TorchNoise

CACHES = ("prefix", "dual")


class BlockCache:
    """Cache of keys and values with transformers' interface. `window`: the columns that run; None: all of them."""

    def __init__(self, cache: str):
        self.cache, self.window = cache, None
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Keys and values that the running columns attend to; arguments as in transformers' Cache."""
        if self.window is None:
            self.layers[layer_idx] = keys, values
            return keys, values
        begin, end = self.window
        if self.cache == "prefix":
            left = (old[:, :, :begin] for old in self.layers[layer_idx])
            return tuple(torch.cat(both, dim=2) for both in zip(left, (keys, values), strict=True))
        for old, new in zip(self.layers[layer_idx], (keys, values), strict=True):
            old[:, :, begin:end] = new
        return self.layers[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: the model is given its positions and does not use this length."""
        return 0


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Tensor,
    attention_mask: Tensor | None = None,
    *,
    cache: str,
    rule: Rule,
    mask_id: int,
    gen_length: int = 128,
    block_length: int = 32,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    noise: Noise | None = None,
    mark: Callable[[str], None] = lambda part: None,
) -> Tensor:
    """Complete left-padded prompts [B, P].

    Args:
        model: a causal architecture of transformers made bidirectional, which takes a mask [B, 1, queries, keys].
        cache: "prefix" or "dual".
        The others: as in :func:`benchmarks.baselines.parallel.generate`.

    Returns:
        int64 [B, P + gen_length].

    Raises:
        ValueError: the blocks do not divide `gen_length`, or `cache` is unknown.
    """
    if gen_length % block_length:
        raise ValueError(f"gen {gen_length}, block {block_length}: blocks must divide gen")
    if cache not in CACHES:
        raise ValueError(f"cache must be one of {', '.join(CACHES)}, got {cache!r}")
    noise = noise or TorchNoise()
    canvas, real = left_padded_canvas(prompt, attention_mask, gen_length, mask_id)
    real = torch.ones_like(canvas) if real is None else real
    given = canvas != mask_id
    for begin in range(prompt.shape[1], canvas.shape[1], block_length):
        end = begin + block_length
        stored = BlockCache(cache)
        for step in range(block_length):  # each step commits a token in every row with a masked position left
            eligible = canvas[:, begin:end] == mask_id
            if not eligible.any():
                break
            if step:
                stored.window = (begin, end if cache == "dual" else canvas.shape[1])
            logits = _logits(model, canvas, given, real, stored, mask_id, cfg_scale)
            first = 0 if stored.window is None else begin
            logits = logits[:, begin - first : end - first]
            tokens = noise.beginning_at(begin).choose(logits, temperature, eligible, step)
            scores = scores_of(logits, tokens, rule.order)
            mark("head")
            commit(canvas[:, begin:end], tokens, scores, eligible, rule, step)
            mark("transfer")
    return canvas


def _logits(
    model: nn.Module, canvas: Tensor, given: Tensor, real: Tensor, stored: BlockCache, mask_id: int, cfg_scale: float
) -> Tensor:
    """Logits [B, W, V] of the running columns, with the model card's guidance: both canvases in one batch."""
    if cfg_scale:
        canvas, real = torch.cat([canvas, torch.where(given, mask_id, canvas)]), torch.cat([real, real])
    begin, end = stored.window or (0, canvas.shape[1])
    column = torch.arange(begin, end, device=canvas.device)
    seen = real.bool()[:, None, None, :].expand(-1, 1, len(column), -1)
    positions = column.expand(len(canvas), -1)
    logits = model(canvas[:, begin:end], attention_mask=seen, position_ids=positions, past_key_values=stored).logits
    if not cfg_scale:
        return logits
    conditional, unconditional = logits.chunk(2)
    return unconditional + (cfg_scale + 1) * (conditional - unconditional)
