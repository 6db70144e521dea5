"""Lists, proposals and moves of a step in Triton: one program per row, four launches in all.

The list of all rows' candidates takes two launches: in the first each row numbers its candidates, in the second it sums
how many the rows before it have, and writes its own behind theirs. So the order is fixed, and nothing is atomic.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels import _tuning
from dllm_kernels.block_schedule.tables import BlockSchedule, Candidates

_INF = tl.constexpr(float("inf"))
_BLOCK_B = 1024  # counts of rows that are summed at a time
_BLOCK_L = 1024  # columns that are searched for an end at a time
_NOT_SPECIAL = ["mask_id", "B", "L", "W", "N", "S", "ROOM", "hidden_rows", "edit_steps", "eos_id", "eot_id"]


@triton.jit
def _current_block(row, block_ptr, blocks_ptr, N):
    """Whether a row is active, and where the tables tell of its current block."""
    block = tl.load(block_ptr + row)
    return block < tl.load(blocks_ptr + row), row * N + tl.minimum(block, N - 1)


@triton.jit
def _window(row, offs_w, active, at, begin_ptr, stop_ptr, L, W):
    """A row's window: its columns, int32, which lie left of the block's end, and which in the block."""
    stop = tl.where(active, tl.load(stop_ptr + at), 0).to(tl.int32)
    column = tl.maximum(stop - W, 0) + offs_w
    before_end = (offs_w < W) & (column < tl.minimum(stop, L))
    return column, before_end, before_end & (column >= tl.load(begin_ptr + at).to(tl.int32))


@triton.jit(do_not_specialize=_NOT_SPECIAL)
def _count_kernel(
    tokens_ptr,
    editable_ptr,
    block_ptr,
    blocks_ptr,
    begin_ptr,
    stop_ptr,
    start_ptr,
    counts_ptr,
    slot_ptr,
    mask_id,
    L,
    W,
    N,
    BLOCK_W: tl.constexpr,
    BLOCK_ONLY: tl.constexpr,
    HAS_EDITABLE: tl.constexpr,
):
    """Number the candidates of a row."""
    row = tl.program_id(0).to(tl.int64)
    offs_w = tl.arange(0, BLOCK_W)
    active, at = _current_block(row, block_ptr, blocks_ptr, N)
    column, before_end, in_block = _window(row, offs_w, active, at, begin_ptr, stop_ptr, L, W)
    token = tl.load(tokens_ptr + row * L + column, mask=before_end, other=0)
    eligible = (token == mask_id) & (in_block if BLOCK_ONLY else before_end)
    if HAS_EDITABLE:
        eligible |= tl.load(editable_ptr + row * L + column, mask=in_block, other=0) != 0
    number = tl.where(eligible, tl.cumsum(eligible.to(tl.int32), axis=0) - 1, -1)
    tl.store(slot_ptr + row * W + offs_w, number.to(tl.int64), mask=offs_w < W)
    tl.store(counts_ptr + row, tl.sum(eligible.to(tl.int32), axis=0))
    tl.store(start_ptr + row, tl.min(column, axis=0).to(tl.int64))


@triton.jit(do_not_specialize=_NOT_SPECIAL)
def _list_kernel(
    start_ptr,
    counts_ptr,
    slot_ptr,
    seeds_ptr,
    step_ptr,
    temperature_ptr,
    offset_ptr,
    index_ptr,
    position_ptr,
    seed_ptr,
    step_of_ptr,
    temperature_of_ptr,
    count_ptr,
    overflow_ptr,
    B,
    W,
    ROOM,
    hidden_rows,
    BLOCK_B: tl.constexpr,
    BLOCK_W: tl.constexpr,
    RIGHT_SHIFT: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
):
    """Write the candidates of a row behind those of the rows before it."""
    row = tl.program_id(0).to(tl.int64)
    offs_w = tl.arange(0, BLOCK_W)
    before, total = 0, 0
    for first in range(0, B, BLOCK_B):
        offs_b = first + tl.arange(0, BLOCK_B)
        counts = tl.load(counts_ptr + offs_b, mask=offs_b < B, other=0)
        before += tl.sum(tl.where(offs_b < row, counts, 0), axis=0)
        total += tl.sum(counts, axis=0)
    number = tl.load(slot_ptr + row * W + offs_w, mask=offs_w < W, other=-1).to(tl.int32)
    slot = before + number
    listed = (number >= 0) & (slot < ROOM)
    tl.store(slot_ptr + row * W + offs_w, tl.where(listed, slot, -1).to(tl.int64), mask=offs_w < W)

    column = tl.load(start_ptr + row).to(tl.int32) + offs_w
    read = tl.maximum(column - 1, 0) if RIGHT_SHIFT else column
    index = tl.minimum(tl.maximum(tl.load(offset_ptr + row).to(tl.int32) + read, 0), hidden_rows - 1)
    tl.store(index_ptr + slot, index.to(tl.int64), mask=listed)
    tl.store(position_ptr + slot, column.to(tl.int64), mask=listed)
    tl.store(seed_ptr + slot, tl.zeros([BLOCK_W], tl.int64) + tl.load(seeds_ptr + row), mask=listed)
    tl.store(step_of_ptr + slot, tl.zeros([BLOCK_W], tl.int64) + tl.load(step_ptr + row), mask=listed)
    if HAS_TEMPERATURE:
        T = tl.zeros([BLOCK_W], tl.float32) + tl.load(temperature_ptr + row)
        tl.store(temperature_of_ptr + slot, T, mask=listed)
    # each row fills its share of the places that are left with zeros
    share = (ROOM + B - 1) // B
    zero, end = tl.zeros([BLOCK_W], tl.int64), tl.minimum((row + 1) * share, ROOM)
    for first in range(0, share, BLOCK_W):
        offs_n = row * share + first + offs_w
        left = (offs_n >= total) & (offs_n < end)
        tl.store(index_ptr + offs_n, zero, mask=left)
        tl.store(position_ptr + offs_n, zero, mask=left)
        tl.store(seed_ptr + offs_n, zero, mask=left)
        tl.store(step_of_ptr + offs_n, zero, mask=left)
        if HAS_TEMPERATURE:
            tl.store(temperature_of_ptr + offs_n, zero.to(tl.float32), mask=left)
    if row == 0:
        tl.store(count_ptr, total.to(tl.int64))
        tl.store(overflow_ptr, tl.load(overflow_ptr) + tl.maximum(total - ROOM, 0))


@triton.jit(do_not_specialize=_NOT_SPECIAL)
def _place_kernel(
    slot_ptr,
    token_ptr,
    rank_ptr,
    uniform_ptr,
    block_ptr,
    step_ptr,
    blocks_ptr,
    amount_ptr,
    proposals_ptr,
    confidence_ptr,
    row_steps_ptr,
    failed_ptr,
    k_ptr,
    W,
    N,
    S,
    BLOCK_W: tl.constexpr,
    HAS_UNIFORM: tl.constexpr,
):
    """Put a row's proposals into its window, and count what it commits."""
    row = tl.program_id(0).to(tl.int64)
    offs_w = tl.arange(0, BLOCK_W)
    cell, mask_w = row * W + offs_w, offs_w < W
    slot = tl.load(slot_ptr + cell, mask=mask_w, other=-1).to(tl.int32)
    proposed = slot >= 0
    token = tl.load(token_ptr + slot, mask=proposed, other=-1)
    tl.store(proposals_ptr + cell, token, mask=mask_w)
    tl.store(confidence_ptr + cell, tl.load(rank_ptr + slot, mask=proposed, other=-_INF), mask=mask_w)
    nothing_finite = tl.max((proposed & (token < 0)).to(tl.int32), axis=0) > 0
    failed = tl.load(failed_ptr + row)
    tl.store(failed_ptr + row, tl.where(nothing_finite & (failed < 0), tl.load(row_steps_ptr + row), failed))
    _, at = _current_block(row, block_ptr, blocks_ptr, N)
    amount = tl.load(amount_ptr + at * S + tl.minimum(tl.load(step_ptr + row), S - 1))
    if HAS_UNIFORM:
        below = proposed & (tl.load(uniform_ptr + slot, mask=proposed, other=_INF) < amount)
        tl.store(k_ptr + row, tl.sum(below.to(tl.int32), axis=0).to(tl.int64))
    else:
        tl.store(k_ptr + row, amount)


@triton.jit(do_not_specialize=_NOT_SPECIAL)
def _advance_kernel(
    tokens_ptr,
    block_ptr,
    step_ptr,
    blocks_ptr,
    begin_ptr,
    stop_ptr,
    steps_ptr,
    proposals_ptr,
    confidence_ptr,
    committed_ptr,
    first_ptr,
    row_steps_ptr,
    unmasked_steps_ptr,
    mask_id,
    edit_threshold,
    edit_steps,
    eos_id,
    eot_id,
    L,
    W,
    N,
    BLOCK_L: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ADAPTS: tl.constexpr,
    EDITS: tl.constexpr,
    BLOCK_ONLY: tl.constexpr,
    HAS_ENDS: tl.constexpr,
    BETWEEN_BLOCKS: tl.constexpr,
):
    """Move a row on."""
    row = tl.program_id(0).to(tl.int64)
    offs_w = tl.arange(0, BLOCK_W)
    tokens_ptr += row * L
    active, at = _current_block(row, block_ptr, blocks_ptr, N)
    step, steps = tl.load(step_ptr + row) + 1, tl.load(steps_ptr + at)
    unmasked_steps = tl.load(unmasked_steps_ptr + row)
    over = step >= steps
    if ADAPTS or EDITS:
        column, before_end, in_block = _window(row, offs_w, active, at, begin_ptr, stop_ptr, L, W)
        current = tl.load(tokens_ptr + column, mask=before_end, other=0)
        masked = before_end & (current == mask_id)
    if EDITS:
        proposal = tl.load(proposals_ptr + row * W + offs_w, mask=in_block, other=-1)
        sure = tl.load(confidence_ptr + row * W + offs_w, mask=in_block, other=-_INF) > edit_threshold
        edited = in_block & sure & ~masked & (proposal >= 0) & (proposal != mask_id) & (proposal != current)
        tl.debug_barrier()  # every thread has read what some replace, and the search below reads what they have written
        tl.store(tokens_ptr + column, proposal, mask=edited)
        tl.debug_barrier()
        left = _any(masked & in_block) if BLOCK_ONLY else _any(masked)
        # no mask before the step: none is left, and none was filled
        unmasked = active & (left == 0) & (tl.load(committed_ptr + row) == 0)
        unmasked_steps += unmasked.to(tl.int64)
        over |= left & (step >= steps - edit_steps)
        over |= unmasked & ((_any(edited) == 0) | (unmasked_steps >= edit_steps))
    elif ADAPTS:
        over |= _any(masked & in_block) == 0
    over &= active
    if HAS_ENDS:
        finished = _finished(tokens_ptr, tl.load(first_ptr + row), mask_id, eos_id, eot_id, L, BLOCK_L)
        if BETWEEN_BLOCKS:
            finished &= over
    else:
        finished = False
    tl.store(row_steps_ptr + row, tl.load(row_steps_ptr + row) + active.to(tl.int64))
    tl.store(step_ptr + row, tl.where(over, 0, step - 1 + active.to(tl.int64)))
    tl.store(unmasked_steps_ptr + row, tl.where(over, 0, unmasked_steps))
    block = tl.load(block_ptr + row) + over.to(tl.int64)
    tl.store(block_ptr + row, tl.where(finished, tl.load(blocks_ptr + row), block))


@triton.jit
def _any(mask):
    return tl.max(mask.to(tl.int32), axis=0) > 0


@triton.jit
def _finished(tokens_ptr, first, mask_id, eos_id, eot_id, L, BLOCK_L: tl.constexpr):
    """Whether the first end among the columns from `first` on lies before the first mask."""
    end, mask = L, L
    for begin in range(0, L, BLOCK_L):
        offs_l = begin + tl.arange(0, BLOCK_L)
        generated = (offs_l < L) & (offs_l >= first)
        token = tl.load(tokens_ptr + offs_l, mask=generated, other=0)
        ends = generated & ((token == eos_id) | (token == eot_id))
        end = tl.minimum(end, tl.min(tl.where(ends, offs_l, L), axis=0))
        mask = tl.minimum(mask, tl.min(tl.where(generated & (token == mask_id), offs_l, L), axis=0))
    return end < mask


def list_candidates(
    tokens: Tensor,
    schedule: BlockSchedule,
    seeds: Tensor,
    *,
    mask_id: int,
    start: Tensor,
    overflow: Tensor,
    window: int,
    hidden_offset: Tensor,
    hidden_rows: int,
    right_shift: bool,
    block_only: bool,
    editable: Tensor | None,
    temperature: Tensor | None,
    room: int | None,
    multiple: int,
) -> Candidates:
    """The cells that a step may fill; as the public function."""
    batch, columns = tokens.shape
    counts = torch.empty(batch, dtype=torch.int32, device=tokens.device)
    count, slot = tokens.new_empty(1), tokens.new_empty(batch, window)
    with torch.cuda.device_of(tokens):
        BLOCK_W, num_warps = _tuning.block_schedule(window, threads=512)  # a scan takes more registers
        _count_kernel[(batch,)](
            tokens_ptr=tokens,
            editable_ptr=editable,
            block_ptr=schedule.block,
            blocks_ptr=schedule.blocks,
            begin_ptr=schedule.begin,
            stop_ptr=schedule.stop,
            start_ptr=start,
            counts_ptr=counts,
            slot_ptr=slot,
            mask_id=mask_id,
            L=columns,
            W=window,
            N=schedule.stop.shape[1],
            BLOCK_W=BLOCK_W,
            BLOCK_ONLY=block_only,
            HAS_EDITABLE=editable is not None,
            num_warps=num_warps,
            num_stages=1,
        )
        if room is None:
            room = max(int(counts.sum()), 1)
        room = -(-room // multiple) * multiple
        index, position, seed, step = tokens.new_empty(4, room)
        own = None if temperature is None else temperature.new_empty(room)
        _list_kernel[(batch,)](
            start_ptr=start,
            counts_ptr=counts,
            slot_ptr=slot,
            seeds_ptr=seeds,
            step_ptr=schedule.step,
            temperature_ptr=temperature,
            offset_ptr=hidden_offset,
            index_ptr=index,
            position_ptr=position,
            seed_ptr=seed,
            step_of_ptr=step,
            temperature_of_ptr=own,
            count_ptr=count,
            overflow_ptr=overflow,
            B=batch,
            W=window,
            ROOM=room,
            hidden_rows=hidden_rows,
            BLOCK_B=_BLOCK_B,
            BLOCK_W=BLOCK_W,
            RIGHT_SHIFT=right_shift,
            HAS_TEMPERATURE=temperature is not None,
            num_warps=num_warps,
            num_stages=1,
        )
    return Candidates(index, position, seed, step, count, slot, own)


def place_proposals(
    slot: Tensor,
    token: Tensor,
    rank: Tensor,
    uniform: Tensor | None,
    schedule: BlockSchedule,
    *,
    proposals: Tensor,
    confidence: Tensor,
    row_steps: Tensor,
    failed: Tensor,
) -> Tensor:
    """Proposals in their windows, and how many each row commits; as the public function."""
    (batch, blocks, most_steps), window = schedule.amount.shape, slot.shape[1]
    k = torch.empty_like(failed)
    with torch.cuda.device_of(slot):
        BLOCK_W, num_warps = _tuning.block_schedule(window)
        _place_kernel[(batch,)](
            slot_ptr=slot,
            token_ptr=token,
            rank_ptr=rank,
            uniform_ptr=uniform,
            block_ptr=schedule.block,
            step_ptr=schedule.step,
            blocks_ptr=schedule.blocks,
            amount_ptr=schedule.amount,
            proposals_ptr=proposals,
            confidence_ptr=confidence,
            row_steps_ptr=row_steps,
            failed_ptr=failed,
            k_ptr=k,
            W=window,
            N=blocks,
            S=most_steps,
            BLOCK_W=BLOCK_W,
            HAS_UNIFORM=uniform is not None,
            num_warps=num_warps,
            num_stages=1,
        )
    return k


def advance_rows(
    tokens: Tensor,
    schedule: BlockSchedule,
    proposals: Tensor,
    confidence: Tensor,
    committed: Tensor,
    *,
    mask_id: int,
    first: Tensor,
    row_steps: Tensor,
    unmasked_steps: Tensor,
    adapts: bool,
    block_only: bool,
    edit_threshold: float | None,
    edit_steps: int,
    ends: tuple[int, int] | None,
    stops_between_blocks: bool,
) -> None:
    """The next step, block or end of each row; as the public function."""
    eos_id, eot_id = ends or (0, 0)
    window = proposals.shape[1]
    with torch.cuda.device_of(tokens):
        BLOCK_W, num_warps = _tuning.block_schedule(window)
        _advance_kernel[(len(tokens),)](
            tokens_ptr=tokens,
            block_ptr=schedule.block,
            step_ptr=schedule.step,
            blocks_ptr=schedule.blocks,
            begin_ptr=schedule.begin,
            stop_ptr=schedule.stop,
            steps_ptr=schedule.steps,
            proposals_ptr=proposals,
            confidence_ptr=confidence,
            committed_ptr=committed,
            first_ptr=first,
            row_steps_ptr=row_steps,
            unmasked_steps_ptr=unmasked_steps,
            mask_id=mask_id,
            edit_threshold=edit_threshold or 0.0,
            edit_steps=edit_steps,
            eos_id=eos_id,
            eot_id=eot_id,
            L=tokens.shape[1],
            W=window,
            N=schedule.stop.shape[1],
            BLOCK_L=_BLOCK_L,
            BLOCK_W=BLOCK_W,
            ADAPTS=adapts,
            EDITS=edit_threshold is not None,
            BLOCK_ONLY=block_only,
            HAS_ENDS=ends is not None,
            BETWEEN_BLOCKS=stops_between_blocks,
            num_warps=max(num_warps, 4),
            num_stages=1,
        )
