"""One denoising step: some masked positions of each row's current block get their tokens.

A step runs the model's body, then the head on the positions that may still be committed, then the sampling kernel and
the transfer kernel, and moves every row on in its schedule. The same function runs eagerly and is captured as a CUDA
graph: it reads and updates tensors of the state and never asks the device for a value.

Rows do not know each other. Each row is packed to column 0 of the canvas, so a position is the row's own position;
seeds, prompts, blocks, steps and early stops are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dllm.fast.head.split import SplitModel
from dllm.fast.sampling.cache import KeyValueCache
from dllm.fast.sampling.clock import Clock
from dllm.fast.sampling.ends import finished_rows
from dllm.fast.sampling.passes import HiddenStates, Pass, canvas, run
from dllm.fast.sampling.propose import ROW_MULTIPLE, Candidates, propose
from dllm.fast.sampling.state import CurrentBlock, Policy, State
from dllm_kernels import transfer_tokens

# On a GPU the number of masked positions stays on the device. So the head has room for a whole block in every row, and
# for this many leftover masks: positions left of a block that still hold the mask token, because the model chose it.
# One of them must not wait: it competes with the block's positions. Below some 200 rows room costs nothing, since the
# head waits for its weight.
LEFTOVER_MASKS = 64


class Window(NamedTuple):
    """The columns of each row that a step looks at, [B, W] each.

    column: int64, the row's own columns.
    tokens: int64, what stands there before the step.
    in_block: bool, whether the column belongs to the row's current block.
    masked: bool, whether the step may commit a token there.
    """

    column: Tensor
    tokens: Tensor
    in_block: Tensor
    masked: Tensor

    @classmethod
    def of(cls, state: State, policy: Policy, now: CurrentBlock) -> Window:
        """The window up to the end of each row's block; its first column is written to `state.start`."""
        state.start.copy_((now.stop - policy.window).clamp(min=0))
        column = state.start[:, None] + torch.arange(policy.window, device=state.tokens.device)
        before_end = column < now.stop[:, None]
        in_block = (column >= now.begin[:, None]) & before_end
        tokens = state.tokens.gather(1, column)
        masked = (tokens == policy.mask_id) & (in_block if policy.keeps_to_blocks else before_end)
        return cls(column, tokens, in_block, masked)


def denoise_step(
    split: SplitModel,
    state: State,
    policy: Policy,
    clock: Clock,
    cache: KeyValueCache | None = None,
    passes: Sequence[Pass] | None = None,
) -> None:
    """Run one step in place: the body, the head with sampling, the transfer of tokens, and the move to the next step.

    `passes` say which columns run (:func:`dllm.fast.sampling.passes.plan`); None: the canvas. Finished rows stay as
    they are, also in the cache, except for what the live view reads (`start`, `proposals`, `confidence`).
    """
    clock.start()
    now = CurrentBlock.of(state)
    hidden_states = run(split, state, policy, now, cache, passes or canvas(state))
    clock.lap("body")
    window = Window.of(state, policy, now)
    proposed, uniform = _sample(split, hidden_states, state, policy, window)
    clock.lap("head")
    over = _commit(state, policy, now, window, proposed, uniform)
    _advance(state, policy, now.active, now.active & over)
    clock.lap("transfer")


def _sample(
    split: SplitModel, hidden_states: HiddenStates, state: State, policy: Policy, window: Window
) -> tuple[Tensor, Tensor | None]:
    """Sample a token for every position of the window that may change; tokens and confidence go into the state.

    Returns:
        proposed: bool [B, W], the positions for which there is a token.
        uniform: float32 [B, W] under the "bernoulli" rule, else None.
    """
    eligible = window.masked
    if policy.edit_threshold is not None:
        eligible = eligible | (window.in_block & state.editable.gather(1, window.column))
    cells, slot, count = _compact(eligible, head_room(policy, len(state.tokens)))
    row = cells // policy.window
    candidates = Candidates(row, window.column.flatten()[cells], state.seeds[row], state.step[row], count)
    token, confidence, uniform = propose(split, hidden_states, candidates, policy, state.suppress, state.begin_suppress)
    state.overflow += (count - len(cells)).clamp(min=0)
    proposed = eligible & (slot < len(cells))
    slot = slot.clamp(max=len(cells) - 1)
    state.proposals.copy_(torch.where(proposed, token[slot], -1))
    state.confidence.copy_(confidence[slot])
    nothing_finite = (proposed & (state.proposals < 0)).any(1)
    state.failed.copy_(torch.where(nothing_finite & (state.failed < 0), state.row_steps, state.failed))
    return proposed, None if uniform is None else uniform[slot]


def _commit(
    state: State, policy: Policy, now: CurrentBlock, window: Window, proposed: Tensor, uniform: Tensor | None
) -> Tensor:
    """Write the tokens of highest confidence into the canvas. Returns bool [B], the rows whose block is over."""
    transfer_tokens(
        state.tokens,
        state.proposals,
        state.confidence,
        mask_id=policy.mask_id,
        k=_transfer_counts(state, policy, now, proposed & window.masked, uniform),
        threshold=policy.threshold,
        factor=policy.factor,
        budget=policy.budget,
        start=state.start,
        impl=policy.impl,
    )
    over = state.step + 1 >= now.steps
    if policy.edit_threshold is not None:
        return over | _edit(state, policy, now, window, proposed)
    if policy.adapts:
        return over | ~((state.tokens.gather(1, window.column) == policy.mask_id) & window.in_block).any(1)
    return over


def _transfer_counts(
    state: State, policy: Policy, now: CurrentBlock, proposed: Tensor, uniform: Tensor | None
) -> Tensor:
    """How many tokens each row commits in this step, int64 [B]."""
    step = state.step.clamp(max=state.amount.shape[2] - 1)[:, None, None]
    block = now.block[:, None, None].expand(-1, -1, state.amount.shape[2])
    amount = state.amount.gather(1, block).gather(2, step).flatten()
    if policy.rule == "count":
        return amount
    return (proposed & (uniform < amount[:, None])).sum(1)


def _edit(state: State, policy: Policy, now: CurrentBlock, window: Window, proposed: Tensor) -> Tensor:
    """Replace committed tokens by others of a confidence above `edit_threshold`; never by the mask token.

    Returns bool [B], the rows whose block is over: no mask was left before the step and nothing was replaced, or all
    steps for masks are used up and the model still chooses the mask token.
    """
    other = (state.proposals != window.tokens) & (state.proposals != policy.mask_id)
    edited = proposed & ~window.masked & other & (state.confidence > policy.edit_threshold)
    after = state.tokens.gather(1, window.column)
    state.tokens.scatter_(1, window.column, torch.where(edited, state.proposals, after))
    unmasked = now.active & ~window.masked.any(1)
    state.unmasked_steps += unmasked
    still_masked = (window.masked & (after == policy.mask_id)).any(1)
    given_up = still_masked & (state.step + 1 >= now.steps - policy.edit_steps)
    return given_up | (unmasked & (~edited.any(1) | (state.unmasked_steps >= policy.edit_steps)))


def _advance(state: State, policy: Policy, active: Tensor, over: Tensor) -> None:
    """Move every row to its next step, to its next block where this one is over, to its end after an EOS."""
    state.row_steps += active
    state.step += active
    state.block += over
    state.step.masked_fill_(over, 0)
    state.unmasked_steps.masked_fill_(over, 0)
    if policy.eos_id is not None:
        finished = finished_rows(state.tokens, state.first, policy.mask_id, policy.eos_id, policy.eot_id)
        if policy.stops_between_blocks:
            finished &= over
        state.block.copy_(torch.where(finished, state.blocks, state.block))


def head_room(policy: Policy, rows: int) -> int:
    """Positions of `rows` rows for which the head has room on a GPU; leftover masks only where a step may commit them.

    Example:
        >>> head_room(Policy(mask_id=0, block_length=32, window=96), 2)
        128
    """
    return rows * policy.block_length + (0 if policy.keeps_to_blocks else LEFTOVER_MASKS)


def _compact(eligible: Tensor, room: int) -> tuple[Tensor, Tensor, Tensor]:
    """List the eligible cells of [B, W] without asking the device how many there are.

    Their number does not follow from the schedule: a model may choose the mask token itself, and such a position stays
    masked. On a CPU the number is known, and the list has that length. On a GPU the list has length `room`; only models
    that leave masks everywhere exceed it, and the cells that do not fit wait for a later step.

    Returns:
        cells: int64 [N], flat indices of the eligible cells in order, then zeros; N is a multiple of ROW_MULTIPLE.
        slot: int64 [B, W], the index of each eligible cell in that list; any number for the others.
        count: int64 [1], the number of eligible cells.
    """
    flat = eligible.flatten()
    running = flat.cumsum(0)
    count, slot = running[-1:], (running - 1).clamp(min=0)
    if flat.device.type == "cpu":
        room = max(int(count.numpy()[0]), 1)
    multiple = ROW_MULTIPLE.get(flat.device.type, ROW_MULTIPLE["cuda"])
    room = -(-room // multiple) * multiple
    target = torch.where(flat, slot, room).clamp(max=room)  # all others write to one spare place
    index = torch.arange(len(flat), device=flat.device)
    cells = torch.zeros(room + 1, dtype=torch.int64, device=flat.device).scatter_(0, target, index)[:room]
    return cells, slot.view_as(eligible), count
