"""What each row of a batch does, block by block and step by step: numbers that are known before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    """One block of one row.

    start, stop: its first column and the one after its last; what is masked left of `stop` may be committed.
    amounts: one number for each step; what it means is the policy's: how many tokens the step commits (at least), or
        with which probability each.
    """

    start: int
    stop: int
    amounts: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The blocks of B rows as tables, at most N blocks of at most S steps.

    blocks: int64 [B], how many blocks each row has.
    begin, stop: int64 [B, N], the first column of each and the one after its last.
    steps: int64 [B, N], how many steps it has, at most.
    amount: [B, N, S], the number of each step: int64 counts or float32 probabilities.
    """

    blocks: Tensor
    begin: Tensor
    stop: Tensor
    steps: Tensor
    amount: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[Block]], device: torch.device, dtype: torch.dtype = torch.int64) -> Schedule:
        """The tables of some rows; blocks without a step are left out.

        Example:
            >>> Schedule.of([[Block(0, 4, [2, 1])], []], torch.device("cpu")).amount.tolist()
            [[[2, 1]], [[0, 0]]]
        """
        rows = [[block for block in row if len(block.amounts)] for row in rows]
        most_blocks = max((len(row) for row in rows), default=0) or 1
        most_steps = max((len(block.amounts) for row in rows for block in row), default=0) or 1
        begin = torch.zeros(len(rows), most_blocks, dtype=torch.int64)
        stop, steps = begin.clone(), begin.clone()
        amount = torch.zeros(len(rows), most_blocks, most_steps, dtype=dtype)
        for b, row in enumerate(rows):
            for n, block in enumerate(row):
                begin[b, n], stop[b, n], steps[b, n] = block.start, block.stop, len(block.amounts)
                amount[b, n, : len(block.amounts)] = torch.as_tensor(block.amounts, dtype=dtype)
        blocks = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        tables = dict(blocks=blocks, begin=begin, stop=stop, steps=steps, amount=amount)
        return cls(**{name: table.to(device) for name, table in tables.items()})

    def rows(self, index: Tensor) -> Schedule:
        """The tables of the rows `index`, int64 [b]."""
        return Schedule(**{field.name: getattr(self, field.name)[index] for field in fields(self)})
