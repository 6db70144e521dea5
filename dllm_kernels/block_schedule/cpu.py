"""Lists, proposals and moves of a step on the CPU: csrc/block_schedule.cpp, one call where PyTorch needs dozens."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels.block_schedule.tables import BlockSchedule, Candidates


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
    """The cells that a step may fill; as the public function, arguments already checked."""
    rows = len(tokens)
    places = _rounded_up(rows * window if room is None else room, multiple)
    lists, slot = seeds.new_empty(4, places), seeds.new_empty(rows, window)
    count = seeds.new_empty(1)
    own = None if temperature is None else temperature.new_empty(places)
    torch.ops.dllm_kernels.list_candidates(
        *(tokens, schedule.block, schedule.step, schedule.blocks, schedule.begin, schedule.stop, seeds, mask_id),
        *(hidden_offset, hidden_rows, right_shift, block_only, editable, temperature),
        *(start, overflow, lists, count, slot, own),
    )
    if room is None:
        places = _rounded_up(max(int(count.numpy()[0]), 1), multiple)
    own = None if own is None else own[:places]
    return Candidates(*lists[:, :places].unbind(), count, slot, own)


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
    """Proposals in their windows, and how many each row commits; as the public function, arguments already checked."""
    k = row_steps.new_empty(len(slot))
    torch.ops.dllm_kernels.place_proposals(
        *(slot, token, rank, uniform, schedule.block, schedule.step, schedule.amount, row_steps),
        *(proposals, confidence, failed, k),
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
    """The next step, block or end of each row; as the public function, arguments already checked.

    ends: the tokens that end a row: of the text and of a turn.
    """
    eos_id, eot_id = (None, 0) if ends is None else ends
    torch.ops.dllm_kernels.advance_rows(
        *(tokens, schedule.block, schedule.step, schedule.blocks, schedule.begin, schedule.stop, schedule.steps),
        *(proposals, confidence, committed, mask_id, first, row_steps, unmasked_steps),
        *(adapts, block_only, edit_threshold, edit_steps, eos_id, eot_id, stops_between_blocks),
    )


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
