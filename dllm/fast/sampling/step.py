"""One denoising step: some masked positions of each row's current block get their tokens.

A step runs the model's body, then the head on the positions that may still be committed, then the sampling kernel and
the transfer kernel, and moves every row on in its schedule. The same function runs eagerly and is captured as a CUDA
graph: it reads and updates tensors of the state and never asks the device for a value.

Rows do not know each other. Each row is packed to column 0 of the canvas, so a position is the row's own position;
seeds, prompts, blocks, steps and early stops are its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dllm.fast.head.split import SplitModel
from dllm.fast.sampling.cache import KeyValueCache
from dllm.fast.sampling.clock import Clock
from dllm.fast.sampling.first_tokens import begin_blocks
from dllm.fast.sampling.passes import Pass, canvas, canvas_offset, run, run_canvas, runs_canvas
from dllm.fast.sampling.propose import ROW_MULTIPLE, Proposed, propose
from dllm.fast.sampling.state import Policy, State
from dllm_kernels import Candidates, advance_rows, list_candidates, place_proposals, transfer_tokens

# On a GPU the number of masked positions stays on the device. So the head has room for a whole block in every row, and
# for this many leftover masks: positions left of a block that still hold the mask token, because the model chose it.
# One of them must not wait: it competes with the block's positions. Below some 200 rows room costs nothing, since the
# head waits for its weight.
LEFTOVER_MASKS = 64


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
    if passes and passes[0].causal:
        begin_blocks(split, state, policy, cache, passes[0])
        passes = passes[1:]
    if runs_canvas(policy, cache):  # which positions are read is known before
        candidates = _candidates(state, policy, canvas_offset(state), state.tokens.numel())
        hidden = run_canvas(split, state, policy, candidates.index)
    else:
        hidden, offset = run(split, state, policy, cache, passes or canvas(state))
        candidates = _candidates(state, policy, offset, len(hidden[0]))
    clock.lap("body")
    sampled = propose(split, hidden, candidates, policy, state.suppress, state.begin_suppress)
    clock.lap("head")
    before = None if state.log_probs is None else state.tokens.clone()
    committed = _commit(state, policy, candidates, sampled)
    _advance(state, policy, committed)
    if before is not None:
        _record(state, before, candidates, sampled.log_prob)
    clock.lap("transfer")


def _candidates(state: State, policy: Policy, offset: Tensor, hidden_rows: int) -> Candidates:
    """The positions for which a token is sampled; column c of row b has hidden state offset[b] + c of `hidden_rows`.

    Their number does not follow from the schedule: a model may choose the mask token itself, and such a position stays
    masked. On a CPU the number is known. On a GPU the list has a fixed room, which only models that leave masks
    everywhere exceed.
    """
    device, room = state.tokens.device.type, head_room(policy, len(state.tokens))
    return list_candidates(
        state.tokens,
        state.schedule,
        state.seeds,
        mask_id=policy.mask_id,
        start=state.start,
        overflow=state.overflow,
        window=state.proposals.shape[1],
        hidden_offset=offset,
        hidden_rows=hidden_rows,
        right_shift=policy.right_shift,
        block_only=policy.keeps_to_blocks,
        editable=state.editable,
        temperature=state.temperature,
        room=None if device == "cpu" else room,
        multiple=ROW_MULTIPLE.get(device, ROW_MULTIPLE["cuda"]),
        impl=policy.impl,
    )


def _commit(state: State, policy: Policy, candidates: Candidates, sampled: Proposed) -> Tensor:
    """Write the tokens of highest confidence into the canvas. Returns how many, int64 [B]."""
    k = place_proposals(
        candidates,
        sampled.token,
        sampled.rank,
        sampled.uniform,
        state.schedule,
        proposals=state.proposals,
        confidence=state.confidence,
        row_steps=state.row_steps,
        failed=state.failed,
        impl=policy.impl,
    )
    return transfer_tokens(
        state.tokens,
        state.proposals,
        state.confidence,
        mask_id=policy.mask_id,
        k=k,
        threshold=policy.threshold,
        factor=policy.factor,
        budget=policy.budget,
        start=state.start,
        impl=policy.impl,
    )


def _advance(state: State, policy: Policy, committed: Tensor) -> None:
    """Move every row to its next step, to its next block where this one is over, to its end after an EOS."""
    advance_rows(
        state.tokens,
        state.schedule,
        state.proposals,
        state.confidence,
        committed,
        mask_id=policy.mask_id,
        first=state.first,
        row_steps=state.row_steps,
        unmasked_steps=state.unmasked_steps,
        adapts=policy.adapts,
        block_only=policy.keeps_to_blocks,
        edit_threshold=policy.edit_threshold,
        edit_steps=policy.edit_steps,
        eos_id=policy.eos_id,
        eot_id=policy.eot_id,
        stops_between_blocks=policy.stops_between_blocks,
        impl=policy.impl,
    )


def _record(state: State, before: Tensor, candidates: Candidates, log_prob: Tensor) -> None:
    """Note the log-probability [N] of each token that this step has written into the canvas, [B, L] before it."""
    window = torch.arange(candidates.slot.shape[1], device=before.device)
    column = (state.start[:, None] + window).clamp(max=before.shape[1] - 1)  # beyond it, in finished rows only
    written = (candidates.slot >= 0) & (state.tokens.gather(1, column) != before.gather(1, column))
    known = state.log_probs.gather(1, column)
    new = log_prob.index_select(0, candidates.slot.clamp(min=0).flatten()).view_as(known)
    state.log_probs.scatter_(1, column, torch.where(written, new, known))


def head_room(policy: Policy, rows: int) -> int:
    """Positions of `rows` rows for which the head has room on a GPU; leftover masks only where a step may commit them.

    Example:
        >>> head_room(Policy(mask_id=0, block_length=32, window=96), 2)
        128
    """
    return rows * policy.block_length + (0 if policy.keeps_to_blocks else LEFTOVER_MASKS)
