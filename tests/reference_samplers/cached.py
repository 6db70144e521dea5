"""Samplers whose fast twins keep keys and values of finished columns: block-causal ones, which lose nothing by it and
are computed anew here at every step, and Fast-dLLM, where what is kept grows stale and is therefore kept here too.

A block of a block-causal sampler sees itself and what lies before it (:class:`BlockCausal`): later blocks do not exist
while it is written, and what it wrote they cannot change. Blocks are counted from the prompt's end, as in every other
sampler; those of LLaDA 2 also from the row's first column, so that one holds the end of the prompt. What is kept of a
finished block is final: masks that a model left in it by proposing the mask token stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

import torch

from dllm.core.schedulers import BaseAlphaScheduler
from tests.reference_samplers.row import Look, Reading, Row, Trace, blocks, new_row
from tests.reference_samplers.rules import FAR, Choice, at_least, by_factor, surest, ulps
from tests.reference_samplers.scheduled import _schedule_b
from tests.reference_samplers.schedules import schedule_a
from tests.reference_samplers.views import BlockCausal, Kept


def bd3lm(
    model,
    prompt,
    *,
    mask_id: int,
    seed: int = 0,
    max_new_tokens: int | None = 128,
    max_length: int | None = None,
    block_size: int = 32,
    steps: int = 128,
    steps_per_block: int | None = None,
    remasking: str = "low_confidence",
    stochastic_transfer: bool = False,
    scheduler: BaseAlphaScheduler | None = None,
    eos_token_id: int | None = None,
    **reading,
) -> Trace:
    """mdlm_sample, block-causal: schedule B over `steps_per_block`, by default ceil(steps / blocks).

    A block is finished before the row can end: see :func:`_end_block`.
    """
    assert remasking in ("low_confidence", "random")
    row = new_row(
        BlockCausal(model, len(prompt), block_size),
        prompt,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        mask_id=mask_id,
        seed=seed,
        reading=Reading(**reading),
    )
    grid = list(blocks(row.generated_from, len(row.canvas), block_size))
    counts = _schedule_b(row, steps_per_block or ceil(steps / max(len(grid), 1)), scheduler, stochastic_transfer)
    for block, start, end in grid:
        if row.finished:
            break
        row.model.end = end
        for step, k in enumerate(counts(len(row.masks(start, end)), start)):
            look = row.look(block, step, end, start=start)
            confidence = row.uniform(step) if remasking == "random" else look.surety
            row.commit(look, surest(confidence, look.eligible, k))
        _end_block(row, eos_token_id)
    return row.trace()


def llada2_block_causal(
    model,
    prompt,
    *,
    mask_id: int,
    seed: int = 0,
    max_new_tokens: int = 128,
    block_size: int = 32,
    steps: int = 32,
    threshold: float = 0.95,
    blocks_from: str = "prompt",
    eos_token_id: int | None = None,
    **reading,
) -> Trace:
    """llada2 in everything, the end at an EOS included, but for what a block sees."""
    first, counted = _first_block(len(prompt), block_size, blocks_from)
    row = new_row(
        BlockCausal(model, counted, block_size),
        prompt,
        max_new_tokens=max_new_tokens,
        mask_id=mask_id,
        seed=seed,
        eos_token_id=eos_token_id,
        reading=Reading(**reading),
    )
    return _llada2(row, first, block_size, steps, threshold)


def llada2_infill(
    model,
    canvas,
    *,
    mask_id: int,
    seed: int = 0,
    block_size: int = 32,
    steps: int = 32,
    threshold: float = 0.95,
    **reading,
) -> Trace:
    """llada2_block_causal over the masks of a given row, from column 0. A block sees no later one, given or not."""
    row = Row(
        BlockCausal(model, 0, block_size),
        torch.as_tensor(canvas, dtype=torch.int64).clone(),
        generated_from=0,
        mask_id=mask_id,
        seed=seed,
        eos_token_id=None,
        reading=Reading(**reading),
    )
    return _llada2(row, 0, block_size, steps, threshold)


def llada21(
    model,
    prompt,
    *,
    mask_id: int,
    seed: int = 0,
    max_new_tokens: int = 128,
    block_size: int = 32,
    steps: int = 32,
    threshold: float = 0.95,
    edit_threshold: float = 0.9,
    edit_steps: int = 16,
    blocks_from: str = "prompt",
    eos_token_id: int | None = None,
    **reading,
) -> Trace:
    """LLaDA 2.1: llada2_block_causal that also replaces tokens of the current block which it committed before.

    Edits and transfers of a step come from one forward, of the canvas before the step, and touch different columns
    (written ones, masks): neither is first. An edit takes no part in k. A column is edited where the proposal differs
    from its token, is not the mask token, and has a confidence above `edit_threshold`.

    Once the block holds no mask up to `edit_steps` further steps follow, of edits alone; the first that edits nothing
    is the last. So the tokens that filled the block are looked at once more. Steps, and with them the noise, are
    counted on. No token is final before its block is: the row ends at the end of a block, see :func:`_end_block`.
    """
    first, counted = _first_block(len(prompt), block_size, blocks_from)
    row = new_row(
        BlockCausal(model, counted, block_size),
        prompt,
        max_new_tokens=max_new_tokens,
        mask_id=mask_id,
        seed=seed,
        reading=Reading(**reading),
    )
    for block, start, end in blocks(first, len(row.canvas), block_size):
        if row.finished:
            break
        row.model.end, step = end, -1
        for step, k in _while_masked(row, start, end, steps):
            look = row.look(block, step, end, start=start)
            transfers = at_least(look.surety, look.eligible, threshold, k=k, strictly=True)
            _commit_with_edits(row, look, transfers, start, end, edit_threshold)
        for further in range(step + 1, step + 1 + edit_steps):
            if row.masks(start, end):
                break  # the model proposes the mask token: the block stays open
            look = row.look(block, further, end, start=start)
            if not _commit_with_edits(row, look, Choice([], FAR), start, end, edit_threshold):
                break
        _end_block(row, eos_token_id)
    return row.trace()


def fast_dllm(
    model,
    prompt,
    *,
    mask_id: int,
    cache: str | None,
    seed: int = 0,
    max_new_tokens: int = 128,
    block_size: int = 32,
    threshold: float | None = None,
    factor: float | None = None,
    steps: int | None = None,
    remasking: str = "low_confidence",
    eos_token_id: int | None = None,
    **reading,
) -> Trace:
    """Fast-dLLM: approximate, as columns that do not run keep what an earlier step computed of them.

    The first step of a block runs the whole row. Its later steps run, with `cache` "prefix", the block and what is
    right of it; with "dual" the block alone; with None the whole row, by the model as it is: make it bidirectional.
    With right_shift_logits a block's first column reads the last that lies before it, which does not run: it reads
    what that one said in the block's first step.

    The rule, exactly one of: `threshold` and `factor` as threshold_decode has them; `steps`: schedule A over
    ceil(steps / blocks) for each block, without the steps that commit nothing; `remasking` "random" ranks them so.
    """
    assert cache in ("prefix", "dual", None) and sum(rule is not None for rule in (threshold, factor, steps)) == 1
    how = Reading(**reading)
    row = new_row(
        model if cache is None else Kept(model, passes=2 if how.cfg_scale > 0 else 1),
        prompt,
        max_new_tokens=max_new_tokens,
        mask_id=mask_id,
        seed=seed,
        eos_token_id=eos_token_id,
        reading=how,
    )
    grid = list(blocks(row.generated_from, len(row.canvas), block_size))
    for block, start, end in grid:
        masks = len(row.masks(start, end))
        # by threshold or factor each step commits one at least: a block of m masks takes m steps at most
        counts = [1] * masks if steps is None else [k for k in schedule_a(masks, ceil(steps / len(grid))) if k]
        for step, k in enumerate(counts):
            if row.finished or not row.masks(start, end):
                break
            if cache:
                row.model.start = start if step else 0
                row.model.end = end if step and cache == "dual" else None
            look = row.look(block, step, end, start=start if cache else 0)
            if threshold is not None:
                choice = at_least(look.surety, look.eligible, threshold)
            elif factor is not None:
                choice = by_factor(look.surety, look.eligible, factor)
            else:
                confidence = row.uniform(step) if remasking == "random" else look.surety
                choice = surest(confidence, look.eligible, k)
            row.commit(look, choice)
    return row.trace()


def _llada2(row: Row, first: int, block_size: int, steps: int, threshold: float) -> Trace:
    """The blocks of a row from column `first` on, each filled by the rule of LLaDA 2.0."""
    for block, start, end in blocks(first, len(row.canvas), block_size):
        row.model.end = end
        for step, k in _while_masked(row, start, end, steps):
            look = row.look(block, step, end, start=start)
            row.commit(look, at_least(look.surety, look.eligible, threshold, k=k, strictly=True))
    return row.trace()


def _first_block(prompt_length: int, block_size: int, blocks_from: str) -> tuple[int, int]:
    """Where the first block begins that is written, and how many tokens precede a border of blocks."""
    assert blocks_from in ("prompt", "row")
    if blocks_from == "prompt":
        return prompt_length, prompt_length
    return prompt_length // block_size * block_size, 0


def _while_masked(row: Row, start: int, end: int, steps: int) -> Iterator[tuple[int, int]]:
    """(step, k) of schedule A over the block's masks, as long as it holds any and the row goes on."""
    for step, k in enumerate(schedule_a(len(row.masks(start, end)), steps)):
        if row.finished or not row.masks(start, end):
            return
        yield step, k


def _commit_with_edits(row: Row, look: Look, transfers: Choice, start: int, end: int, threshold: float) -> bool:
    """Whether anything was edited; what was given never is."""
    written = [p for p in range(start, end) if p not in look.eligible and not row.given[p]]
    changed = [p for p in written if look.proposal[p] not in (row.canvas[p], row.mask_id)]
    c, bar = look.surety.value.exp(), torch.tensor(threshold, dtype=torch.float32)
    edits = [p for p in changed if c[p] > bar]
    gap = min((ulps(float(look.surety.exact[p].exp()), threshold) for p in changed), default=FAR)
    row.commit(
        look._replace(eligible=look.eligible + written),
        Choice(transfers.positions + edits, min(transfers.gap, gap)),
    )
    return bool(edits)


def _end_block(row: Row, eos_token_id: int | None) -> None:
    """The row ends with the block in which an EOS appeared; the rest, from that EOS on, becomes EOS. The canvas of the
    block's last step is the one after this."""
    row.eos_token_id = eos_token_id
    row._stop_at_eos()
    row.eos_token_id = None
    row.history[-1] = row.canvas.clone()
    row.steps[-1] = row.steps[-1]._replace(canvas=row.history[-1])
