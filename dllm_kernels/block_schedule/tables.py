"""The blocks of each row as tables, and the list of cells that a step may fill."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class BlockSchedule(NamedTuple):
    """The blocks of B rows as tables, at most N blocks of at most S steps, and where each row is in them.

    block: int64 [B], index of the current block; blocks[b] when row b is finished.
    step: int64 [B], index of the step within the block.
    blocks: int64 [B], how many blocks each row has.
    begin, stop: int64 [B, N], the first column of each block and the one after its last.
    steps: int64 [B, N], how many steps each block has, at most.
    amount: int64 or float32 [B, N, S]: how many tokens each step commits, or with which probability each.
    """

    block: Tensor
    step: Tensor
    blocks: Tensor
    begin: Tensor
    stop: Tensor
    steps: Tensor
    amount: Tensor


class CurrentBlock(NamedTuple):
    """The block that each row is working on, [B] each. A finished row has that of its last block, and stop 0.

    active: whether the row is not finished.
    block: index of the block.
    begin, stop: its first column and the one after its last.
    steps: how many steps it has, at most.
    """

    active: Tensor
    block: Tensor
    begin: Tensor
    stop: Tensor
    steps: Tensor

    @classmethod
    def of(cls, schedule: BlockSchedule) -> CurrentBlock:
        active, block = schedule.block < schedule.blocks, schedule.block.clamp(max=schedule.stop.shape[1] - 1)
        begin, stop, steps = (
            table.gather(1, block[:, None]).squeeze(1) for table in (schedule.begin, schedule.stop, schedule.steps)
        )
        return cls(active, block, begin, torch.where(active, stop, 0), steps)


class Candidates(NamedTuple):
    """The cells that a step may fill, row by row and from left to right; zeros fill up the lists of length N.

    index: int64 [N], where the hidden state is that a cell's logits are read from.
    position: int64 [N], the cell's column.
    seed, step: int64 [N], of its row.
    count: int64 [1], how many cells there are; more than N if not all have a place in the list.
    slot: int64 [B, W], each cell's place in the list; -1 for cells that have none.
    temperature: float32 [N], of its row; None where rows have none of their own.
    """

    index: Tensor
    position: Tensor
    seed: Tensor
    step: Tensor
    count: Tensor
    slot: Tensor
    temperature: Tensor | None = None
