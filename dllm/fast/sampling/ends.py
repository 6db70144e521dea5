"""Rows that end before the last step of their schedule: at an EOS, or where the caller says so."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dllm.fast.sampling.state import Policy, State, ends_row
from dllm_kernels import CurrentBlock

Finished = Callable[[int, list[int]], bool]


class EarlyEnds:
    """Asks the caller which rows are finished, and ends these.

    Args:
        finished: called with the index of a row in the call's batch and the row's final tokens, when these have grown
            (:func:`count_final_tokens`). They may go on after an EOS. True ends the row.
        policy: of the call.
        eos_id: fills the rest of a row that ends.

    Example:
        >>> from dllm.fast.sampling.state import Policy
        >>> EarlyEnds(lambda row, tokens: 7 in tokens, Policy(mask_id=3, window=4, block_length=4), eos_id=2).asked
        {}
    """

    def __init__(self, finished: Finished, policy: Policy, eos_id: int):
        self.finished, self.policy, self.eos_id = finished, policy, eos_id
        self.asked: dict[int, int] = {}  # by row: how many tokens the caller has seen

    def end_rows(self, state: State, rows: list[int]) -> None:
        """Ask for each row that has new final tokens, and end those that are finished, in place. Waits for the device.

        Args:
            state: of the rows that are still in the batch.
            rows: their indices in the call's batch.
        """
        canvas, first, length = state.tokens.tolist(), state.first.tolist(), state.length.tolist()
        final = count_final_tokens(state, self.policy, canvas, first, length)
        asked, self.asked = self.asked, dict(zip(rows, final, strict=True))  # of rows that have left nothing is kept
        for place, (row, count) in enumerate(zip(rows, final, strict=True)):
            stop = first[place] + count
            if count > asked.get(row, 0) and self.finished(row, canvas[place][first[place] : stop]):
                state.tokens[place, stop : length[place]] = self.eos_id
                state.block[place] = state.blocks[place]


def count_final_tokens(
    state: State, policy: Policy, canvas: list[list[int]], first: list[int], length: list[int]
) -> list[int]:
    """How many of each row's first generated tokens no later step can change; of rows that are finished none.

    These are the tokens before the first mask; where steps may replace tokens, only those before the current block.

    Args:
        state, policy: of the rows.
        canvas, first, length: tensors of the state, on the host: lists are searched faster there than small tensors.
    """
    if policy.edit_threshold is None:
        active, begin = (state.block < state.blocks).tolist(), length
    else:
        now = CurrentBlock.of(state.schedule)
        active, begin = now.active.tolist(), now.begin.tolist()
    counts = []
    for row, runs, generated, end, block in zip(canvas, active, first, length, begin, strict=True):
        own = row[generated:end]
        before_mask = own.index(policy.mask_id) if policy.mask_id in own else len(own)
        counts.append(max(min(before_mask, block - generated), 0) if runs else 0)
    return counts


def ended(state: State, policy: Policy, tokens: Tensor) -> Tensor:
    """Tokens [B, L] as they are once the rows are finished: where rows end early, with EOS after each row's end."""
    if policy.eos_id is None:
        return tokens
    return fill_after_end(tokens, state.first, state.length, policy.eos_id, policy.eot_id)


def fill_after_end(tokens: Tensor, first: Tensor, stop: Tensor, eos_id: int, eot_id: int | None = None) -> Tensor:
    """Tokens with EOS after each row's first generated EOS or end of turn, up to column `stop` [B]."""
    column = torch.arange(tokens.shape[1], device=tokens.device)
    generated = (column >= first[:, None]) & (column < stop[:, None])
    ends = ends_row(tokens, eos_id, eot_id) & generated
    ended = ends.cumsum(1) - ends.long() > 0  # before this column
    return torch.where(ended & generated, eos_id, tokens)
