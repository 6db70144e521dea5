"""Lists, proposals and moves of a step in eager PyTorch: the specification. Arguments are checked in `api.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels.block_schedule.tables import BlockSchedule, Candidates, CurrentBlock


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
    """The cells that a step may fill; as the public function.

    Example:
        >>> one, rest = torch.ones(1, 1, dtype=torch.int64), dict(right_shift=False, block_only=True)
        >>> rest |= dict(editable=None, temperature=None)
        >>> schedule = BlockSchedule(one[0] * 0, one[0] * 0, one[0], one, one * 3, one, one[None])
        >>> at = dict(start=one[0].clone(), overflow=one[0] * 0, window=3, hidden_offset=one[0] * 0, hidden_rows=3)
        >>> list_candidates(one.expand(1, 3), schedule, one[0], mask_id=1, room=None, multiple=4, **at, **rest).position
        tensor([1, 2, 0, 0])
    """
    now = CurrentBlock.of(schedule)
    start.copy_((now.stop - window).clamp(min=0))
    column, before_end, in_block = _window(now, window)
    eligible = (tokens.gather(1, column) == mask_id) & (in_block if block_only else before_end)
    if editable is not None:
        eligible |= in_block & editable.gather(1, column)

    flat = eligible.flatten()
    running = flat.cumsum(0)
    count = running[-1:]
    fits_all = room is None
    if fits_all:
        room = max(int(count.numpy(force=True)[0]), 1)
    room = -(-room // multiple) * multiple
    if not fits_all:
        overflow += (count - room).clamp(min=0)
    listed = flat & (running <= room)
    slot = torch.where(listed, running - 1, -1)
    target = torch.where(listed, slot, room)  # all others write to one spare place
    index = torch.arange(len(flat), device=flat.device)
    cells = index.new_zeros(room + 1).scatter_(0, target, index)[:room]

    row, used = cells // window, torch.arange(room, device=flat.device) < count
    read = (column - 1).clamp(min=0) if right_shift else column
    hidden = (hidden_offset[:, None] + read).clamp(0, hidden_rows - 1)
    lists = hidden.flatten()[cells], column.flatten()[cells], seeds[row], schedule.step[row]
    own = None if temperature is None else temperature[row] * used
    return Candidates(*torch.stack(lists) * used, count, slot.view_as(eligible), own)


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
    proposed, place = slot >= 0, slot.clamp(min=0)
    proposals.copy_(torch.where(proposed, token[place], -1))
    confidence.copy_(torch.where(proposed, rank[place], -torch.inf))
    nothing_finite = (proposed & (proposals < 0)).any(1)
    failed.copy_(torch.where(nothing_finite & (failed < 0), row_steps, failed))
    batch, blocks, most_steps = schedule.amount.shape
    block, step = schedule.block.clamp(max=blocks - 1), schedule.step.clamp(max=most_steps - 1)
    amount = schedule.amount[torch.arange(batch, device=slot.device), block, step]
    return amount if uniform is None else (proposed & (uniform[place] < amount[:, None])).sum(1)


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
    """The next step, block or end of each row; as the public function.

    ends: the tokens that end a row: of the text and of a turn.
    """
    now = CurrentBlock.of(schedule)
    over = schedule.step + 1 >= now.steps
    if adapts or edit_threshold is not None:
        column, before_end, in_block = _window(now, proposals.shape[1])
        current = tokens.gather(1, column)
        masked = current == mask_id
    if edit_threshold is not None:
        other = (proposals >= 0) & (proposals != mask_id) & (proposals != current)
        edited = in_block & ~masked & other & (confidence > edit_threshold)
        tokens.scatter_(1, column, torch.where(edited, proposals, current))
        left = (masked & (in_block if block_only else before_end)).any(1)
        # no mask before the step: none is left, and none was filled
        unmasked = now.active & ~left & (committed == 0)
        unmasked_steps += unmasked
        over |= left & (schedule.step + 1 >= now.steps - edit_steps)
        over |= unmasked & (~edited.any(1) | (unmasked_steps >= edit_steps))
    elif adapts:
        over |= ~(masked & in_block).any(1)
    over &= now.active
    row_steps += now.active
    schedule.step.add_(now.active).masked_fill_(over, 0)
    unmasked_steps.masked_fill_(over, 0)
    schedule.block.add_(over)
    if ends is not None:
        finished = _finished(tokens, first, mask_id, ends)
        if stops_between_blocks:
            finished &= over
        schedule.block.copy_(torch.where(finished, schedule.blocks, schedule.block))


def _window(now: CurrentBlock, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The columns of each row's window, [B, W]: which lie left of its block's end, and which in its block."""
    column = (now.stop - width).clamp(min=0)[:, None] + torch.arange(width, device=now.stop.device)
    before_end = column < now.stop[:, None]
    return column, before_end, before_end & (column >= now.begin[:, None])


def _finished(tokens: Tensor, first: Tensor, mask_id: int, ends: tuple[int, int]) -> Tensor:
    """bool [B]: rows whose generated part holds an end with no mask before it: it is final."""
    generated = torch.arange(tokens.shape[1], device=tokens.device) >= first[:, None]
    ended = ((tokens == ends[0]) | (tokens == ends[1])) & generated
    masks_before = ((tokens == mask_id) & generated).cumsum(1)
    return (ended & (masks_before == 0)).any(1)
