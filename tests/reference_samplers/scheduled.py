"""Samplers that know beforehand how many tokens each step commits: MDLM's two and LLaDA's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import ceil

import torch

from dllm.core.schedulers import BaseAlphaScheduler, LinearAlphaScheduler
from tests.reference_samplers.row import Reading, Row, Trace, blocks, new_row
from tests.reference_samplers.rules import surest
from tests.reference_samplers.schedules import schedule_a, schedule_b


def mdlm_sample(
    model,
    prompt,
    *,
    mask_id: int,
    seed: int = 0,
    max_new_tokens: int | None = 128,
    max_length: int | None = None,
    block_size: int = 128,
    steps: int = 128,
    remasking: str = "low_confidence",
    stochastic_transfer: bool = False,
    scheduler: BaseAlphaScheduler | None = None,
    eos_token_id: int | None = None,
    eot_token_id: int | None = None,
    **reading,
) -> Trace:
    """The prompt followed by masks, filled block by block from the prompt's end, ceil(steps / blocks) steps each."""
    row = new_row(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        mask_id=mask_id,
        seed=seed,
        eos_token_id=eos_token_id,
        eot_token_id=eot_token_id,
        reading=Reading(**reading),
    )
    grid = list(blocks(row.generated_from, len(row.canvas), block_size))
    counts = _schedule_b(row, ceil(steps / max(len(grid), 1)), scheduler, stochastic_transfer)
    return _fill(row, grid, counts, remasking)


def mdlm_infill(
    model,
    canvas,
    *,
    mask_id: int,
    seed: int = 0,
    block_size: int | None = None,
    steps: int = 128,
    remasking: str = "low_confidence",
    stochastic_transfer: bool = False,
    scheduler: BaseAlphaScheduler | None = None,
    **reading,
) -> Trace:
    """The masks of a given row, filled block by block from column 0; None is one block. No stop at EOS: what stands
    behind one was given."""
    canvas = torch.as_tensor(canvas, dtype=torch.int64).clone()
    row = Row(
        model, canvas, generated_from=0, mask_id=mask_id, seed=seed, eos_token_id=None, reading=Reading(**reading)
    )
    grid = list(blocks(0, len(canvas), block_size or max(len(canvas), 1)))
    counts = _schedule_b(row, ceil(steps / max(len(grid), 1)), scheduler, stochastic_transfer)
    return _fill(row, grid, counts, remasking)


def llada(
    model,
    prompt,
    *,
    mask_id: int,
    seed: int = 0,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    remasking: str = "low_confidence",
    logits_eos_inf: bool = False,
    confidence_eos_eot_inf: bool = False,
    eos_id: int | None = None,
    eot_id: int | None = None,
    eos_token_id: int | None = None,
    **reading,
) -> Trace:
    """As the model card's loop, schedule A with its zeros.

    logits_eos_inf: `eos_id` is never chosen. confidence_eos_eot_inf: `eos_id` and `eot_id` are committed last.
    """
    assert gen_length % block_length == 0 and steps % (gen_length // block_length) == 0
    if logits_eos_inf:
        reading["suppress_tokens"] = [*(reading.get("suppress_tokens") or ()), eos_id]
    if confidence_eos_eot_inf:
        reading["begin_suppress_tokens"] = [*(reading.get("begin_suppress_tokens") or ()), eos_id, eot_id]
    row = new_row(
        model,
        prompt,
        max_new_tokens=gen_length,
        mask_id=mask_id,
        seed=seed,
        eos_token_id=eos_token_id,
        reading=Reading(**reading),
    )
    grid = list(blocks(row.generated_from, len(row.canvas), block_length))
    return _fill(row, grid, lambda m, start: schedule_a(m, steps // len(grid)), remasking)


def _schedule_b(row: Row, steps: int, scheduler, stochastic: bool) -> Callable[[int, int], list[int]]:
    scheduler = scheduler or LinearAlphaScheduler()
    return lambda m, start: schedule_b(m, steps, scheduler, seed=row.seed if stochastic else None, start=start)


def _fill(row: Row, grid: Iterable, counts: Callable[[int, int], list[int]], remasking: str) -> Trace:
    """Each step commits the k surest masks left of its block's end, k = counts(masks of the block, first column)."""
    assert remasking in ("low_confidence", "random")
    for block, start, end in grid:
        for step, k in enumerate(counts(len(row.masks(start, end)), start)):
            if row.finished:
                break
            look = row.look(block, step, end)
            confidence = row.uniform(step) if remasking == "random" else look.surety
            row.commit(look, surest(confidence, look.eligible, k))
    return row.trace()
