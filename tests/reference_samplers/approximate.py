"""Samplers that commit as many tokens as the model is sure of: approximate, since tokens of one step do not see each
other. No cache: every step runs the whole canvas. A block goes on until it holds no mask.

Each step commits at least one token, so a block of m masks takes at most m steps; that is also where a block ends whose
model keeps on proposing the mask token itself.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.reference_samplers.row import Look, Reading, Row, Trace, blocks, new_row
from tests.reference_samplers.rules import Choice, at_least, by_factor, within_budget
from tests.reference_samplers.schedules import schedule_a


def threshold_decode(
    model,
    prompt,
    *,
    mask_id: int,
    seed: int = 0,
    max_new_tokens: int = 128,
    block_size: int = 32,
    threshold: float | None = None,
    factor: float | None = None,
    eos_token_id: int | None = None,
    **reading,
) -> Trace:
    """Fast-dLLM's two rules, exactly one of them given: `threshold`: all with confidence >= threshold, at least the
    best; `factor`: the longest prefix with c_r >= 1 - factor / (r + 1), at least one."""
    assert (threshold is None) != (factor is None)
    row = _row(model, prompt, max_new_tokens, mask_id, seed, eos_token_id, reading)

    def rule(look: Look) -> Choice:
        if threshold is not None:
            return at_least(look.surety, look.eligible, threshold)
        return by_factor(look.surety, look.eligible, factor)

    return _until_filled(row, block_size, rule)


def entropy_bound(
    model,
    prompt,
    *,
    mask_id: int,
    seed: int = 0,
    max_new_tokens: int = 128,
    block_size: int | None = None,
    gamma: float = 0.1,
    eos_token_id: int | None = None,
    **reading,
) -> Trace:
    """Positions by the entropy of softmax(l), ascending, while the entropies of those before sum up to at most gamma.
    block_size None: the whole generation is one block."""
    row = _row(model, prompt, max_new_tokens, mask_id, seed, eos_token_id, reading)
    size = block_size or max(max_new_tokens, 1)
    return _until_filled(row, size, lambda look: within_budget(look.neg_entropy, look.eligible, gamma))


def llada2(
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
    """LLaDA 2.0's rule, `steps` for each block: all with confidence above the threshold, and at least k surest, k from
    schedule A over the block's masks at its start. A step with k = 0 still runs. Blocks are counted from the prompt's
    end, or from the first column of the row: then the block in which the prompt ends is the first."""
    assert blocks_from in ("prompt", "row")
    row = _row(model, prompt, max_new_tokens, mask_id, seed, eos_token_id, reading)
    first = row.generated_from - (row.generated_from % block_size if blocks_from == "row" else 0)
    for block, start, end in blocks(first, len(row.canvas), block_size):
        for step, k in enumerate(schedule_a(len(row.masks(start, end)), steps)):
            if row.finished or not row.masks(start, end):
                break
            look = row.look(block, step, end)
            row.commit(look, at_least(look.surety, look.eligible, threshold, k=k, strictly=True))
    return row.trace()


def _row(model, prompt, max_new_tokens, mask_id, seed, eos_token_id, reading: dict) -> Row:
    return new_row(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        mask_id=mask_id,
        seed=seed,
        eos_token_id=eos_token_id,
        reading=Reading(**reading),
    )


def _until_filled(row: Row, block_size: int, rule: Callable[[Look], Choice]) -> Trace:
    for block, start, end in blocks(row.generated_from, len(row.canvas), block_size):
        for step in range(len(row.masks(start, end))):
            if row.finished or not row.masks(start, end):
                break
            look = row.look(block, step, end)
            row.commit(look, rule(look))
    return row.trace()
