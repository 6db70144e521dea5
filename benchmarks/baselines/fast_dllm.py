"""Fast-dLLM's loop as its authors run it: keys and values kept per block, as many tokens a step as a rule allows. It is
approximate twice over: tokens of one step do not know each other, and what is kept is of a canvas that has changed.

The first step of a block runs the canvas and keeps all keys and values. Later steps run the block and what follows it
beside the keys and values to its left, joined anew in every layer ("prefix"), or the block alone, whose keys and values
are replaced among all others ("dual"). The rows of a batch begin and end their blocks together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.baselines.llada import left_padded_canvas
from benchmarks.baselines.parallel import Rule, commit, scores_of
from benchmarks.card_loop import Noise, TorchNoise

CACHES = ("prefix", "dual")


class Kept:
    """What attention layers keep: they call :meth:`update`. Set `window` to the columns that run, None for all."""

    def __init__(self, cache: str):
        self.cache, self.window = cache, None
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Keys and values that the columns which run see; arguments as of transformers' Cache."""
        if self.window is None:
            self.layers[layer_idx] = keys, values
            return keys, values
        begin, end = self.window
        if self.cache == "prefix":
            left = (kept[:, :, :begin] for kept in self.layers[layer_idx])
            return tuple(torch.cat(both, dim=2) for both in zip(left, (keys, values), strict=True))
        for kept, new in zip(self.layers[layer_idx], (keys, values), strict=True):
            kept[:, :, begin:end] = new
        return self.layers[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """None, as far as a model that is told its positions is concerned."""
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
        model: a causal architecture of transformers whose positions see both sides, with a mask [B, 1, queries, keys].
        cache: "prefix" or "dual".
        The others: as in :func:`benchmarks.baselines.parallel.generate`.

    Returns:
        int64 [B, P + gen_length].

    Raises:
        ValueError: the blocks do not divide `gen_length`, or there is no such cache.
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
        kept = Kept(cache)
        for step in range(block_length):  # each commits a token in every row that has a mask left
            eligible = canvas[:, begin:end] == mask_id
            if not eligible.any():
                break
            if step:
                kept.window = (begin, end if cache == "dual" else canvas.shape[1])
            logits = _logits(model, canvas, given, real, kept, mask_id, cfg_scale)
            first = 0 if kept.window is None else begin
            logits = logits[:, begin - first : end - first]
            tokens = noise.beginning_at(begin).choose(logits, temperature, eligible, step)
            scores = scores_of(logits, tokens, rule.order)
            mark("head")
            commit(canvas[:, begin:end], tokens, scores, eligible, rule, step)
            mark("transfer")
    return canvas


def _logits(
    model: nn.Module, canvas: Tensor, given: Tensor, real: Tensor, kept: Kept, mask_id: int, cfg_scale: float
) -> Tensor:
    """Logits [B, W, V] of the columns that run; guided as the model card's, both canvases in one batch."""
    if cfg_scale:
        canvas, real = torch.cat([canvas, torch.where(given, mask_id, canvas)]), torch.cat([real, real])
    begin, end = kept.window or (0, canvas.shape[1])
    column = torch.arange(begin, end, device=canvas.device)
    seen = real.bool()[:, None, None, :].expand(-1, 1, len(column), -1)
    positions = column.expand(len(canvas), -1)
    logits = model(canvas[:, begin:end], attention_mask=seen, position_ids=positions, past_key_values=kept).logits
    if not cfg_scale:
        return logits
    conditional, unconditional = logits.chunk(2)
    return unconditional + (cfg_scale + 1) * (conditional - unconditional)
