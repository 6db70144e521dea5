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
        now = CurrentBlock.of(state.schedule)
        final = torch.where(now.active, count_final_tokens(state, self.policy, now), 0)
        counts = dict(zip(rows, final.tolist(), strict=True))
        grown = [place for place, (row, count) in enumerate(counts.items()) if count > self.asked.get(row, 0)]
        if not grown:
            return
        self.asked = counts  # of rows that have left nothing is kept
        device = state.tokens.device
        index, own = torch.tensor(grown, device=device), [rows[place] for place in grown]
        asked = zip(own, state.tokens[index].tolist(), state.first[index].tolist(), strict=True)
        ended = [self.finished(row, tokens[first : first + counts[row]]) for row, tokens, first in asked]
        over = torch.zeros_like(now.active)
        over[index] = torch.tensor([bool(one) for one in ended], device=device)
        column = torch.arange(state.tokens.shape[1], device=device)
        rest = (column >= (state.first + final)[:, None]) & (column < state.length[:, None])
        state.tokens.masked_fill_(rest & over[:, None], self.eos_id)
        state.block.copy_(torch.where(over, state.blocks, state.block))


def count_final_tokens(state: State, policy: Policy, now: CurrentBlock) -> Tensor:
    """How many of each row's first generated tokens no later step can change, int64 [B].

    These are the tokens before the first mask; where steps may replace tokens, only those before the current block.
    """
    column = torch.arange(state.tokens.shape[1], device=state.tokens.device)
    masked = (state.tokens == policy.mask_id) & (column >= state.first[:, None])
    stop = torch.where(masked, column, state.length[:, None]).amin(1)
    if policy.edit_threshold is not None:
        stop = torch.minimum(stop, now.begin)
    return (stop - state.first).clamp(min=0)


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
