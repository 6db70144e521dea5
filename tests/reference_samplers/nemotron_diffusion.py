"""Nemotron's sampling as a plain loop over one row: an autoregressive first token, then a block of masks over a causal
context. Nothing is kept: each forward runs all columns up to the block's end under the mask that says who sees whom.

A block of W columns from b on, behind everything that is final:

    x_b       = choice from the logits of column b - 1, where every column sees itself and those before
    x_b+1 ... = masks
    steps: logits of the block, whose columns see each other and all before; columns before it see themselves and those
           before them. Commit all proposals of probability >= threshold, and at least k_i: m // S, and one more at the
           first m mod S of S steps, m = W - 1. A block has one step at least, and ends with its last mask.

</think> is written where max_thinking_tokens tokens have been generated, unless it stands before, or is the first token
of the block in which that column lies. An EOS with no mask before it ends the row, and the rest becomes EOS.

The noise of x_b has step -1 in its address; that of the steps counts from 0 in each block.

Source: `generate` of Nemotron-Labs-Diffusion, read; written anew.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from tests.reference_samplers.row import Reading, Row, Trace, blocks, new_row
from tests.reference_samplers.rules import at_least, surest
from tests.reference_samplers.schedules import schedule_a
from tests.reference_samplers.views import _eager


class NemotronTrace(NamedTuple):
    """trace: of the steps. causal_passes: how often what is final was read. first_tokens: of the blocks, as chosen."""

    trace: Trace
    causal_passes: int
    first_tokens: list[int]


class CausalContext:
    """Columns before `begin` see themselves and those before; columns from there to before `end` see each other, too.

    Logits of columns behind `end` are 0.
    """

    def __init__(self, model):
        self.model = model
        self.begin = self.end = 0

    def __call__(self, input_ids: Tensor) -> SimpleNamespace:
        column = torch.arange(self.end, device=input_ids.device)
        seen = (column[None, :] <= column[:, None]) | (column[:, None] >= self.begin)
        mask = torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)
        with _eager(self.model):
            said = self.model(
                input_ids=input_ids[:, : self.end],
                attention_mask=mask[None, None],
                position_ids=column[None],
                use_cache=False,
            ).logits
        logits = said.new_zeros(1, input_ids.shape[1], said.shape[-1])
        logits[:, : self.end] = said
        return SimpleNamespace(logits=logits)


def nemotron_diffusion(
    model,
    prompt,
    *,
    mask_id: int,
    seed: int = 0,
    max_new_tokens: int,
    block_size: int = 8,
    threshold: float | None = 0.9,
    steps: int | None = None,
    eos_token_id: int | None = None,
    think_end_id: int | None = None,
    max_thinking_tokens: int | None = None,
    **reading,
) -> NemotronTrace:
    """The trace of one row."""
    row = new_row(
        CausalContext(model),
        prompt,
        max_new_tokens=max_new_tokens,
        mask_id=mask_id,
        seed=seed,
        eos_token_id=eos_token_id,
        reading=Reading(**reading),
    )
    budget = None if max_thinking_tokens is None else len(prompt) + max_thinking_tokens
    chosen: list[int] = []
    for block, start, end in blocks(len(prompt), len(row.canvas), block_size):
        if row.finished:
            break
        chosen.append(_first_token(row, start))
        row.canvas[start] = chosen[-1]
        if budget is not None and start <= budget < end:
            if think_end_id not in row.canvas[len(prompt) : start + 1].tolist():
                row.canvas[budget] = think_end_id
        row.model.begin, row.model.end = start, end
        _denoise(row, block, start, end, steps, threshold)
    return NemotronTrace(row.trace(), len(chosen), chosen)


def _first_token(row: Row, column: int) -> int:
    """The choice for a column from the logits of the one before, all columns causal."""
    row.model.begin = row.model.end = column
    shifted = row._logits().roll(1, 0)  # the draw has the address of the column that it fills
    return int(row.noise.token(shifted, -1)[column])


def _denoise(row: Row, block: int, start: int, end: int, steps: int | None, threshold: float | None) -> None:
    counts = [k for k in schedule_a(end - start - 1, steps or end - start) if k]
    for step, k in enumerate([*counts, 1]):
        look = row.look(block, step, end, start=start)
        if threshold is None:
            row.commit(look, surest(look.surety, look.eligible, k))
        else:
            row.commit(look, at_least(look.surety, look.eligible, threshold, k=k))
        if row.finished or not row.masks(start, end):
            return
