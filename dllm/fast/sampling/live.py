"""Rows between two steps: all of a call, as the `on_step` callback gets them, or single ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dllm.fast.sampling.ends import ended
from dllm.fast.sampling.state import Policy, State
from dllm_kernels import CurrentBlock


class Step(NamedTuple):
    """The canvas after one denoising step. Tensors are copies, in the caller's layout.

    canvas: int64 [B, L], masks where nothing is committed yet.
    tentative: int64 [B, L], the canvas with this step's sampled tokens in place of the masks that it might have
        committed.
    confidence: float32 [B, L], the confidence of this step's sampled tokens (log-probabilities, by default), NaN
        elsewhere.
    block, blocks: index of the current block and the number of blocks, of the row that is farthest behind.
    step, steps: index of the step within that block, and how many it has at most.
    open: bool [B, L], where no token is final yet; None: where the canvas has masks.
    """

    canvas: Tensor
    tentative: Tensor
    confidence: Tensor
    block: int
    blocks: int
    step: int
    steps: int
    open: Tensor | None = None


class Progress(NamedTuple):
    """Fields `block` to `steps` of :class:`Step`."""

    block: int
    blocks: int
    step: int
    steps: int

    @classmethod
    def of(cls, state: State) -> Progress:
        """Before a step."""
        left = torch.where(state.block < state.blocks, state.blocks - state.block, -1)
        row = int(left.argmax())
        block = min(int(state.block[row]), state.stop.shape[1] - 1)
        return cls(block, int(state.blocks[row]), int(state.step[row]), int(state.steps[row, block]))


class RowView(NamedTuple):
    """One row between two steps. Tensors are copies, of the row's own columns.

    canvas: int64 [length], masks where nothing is committed yet.
    tentative: int64 [length], with the tokens that the last step sampled in place of masks.
    confidence: float32 [length], of the tokens that the last step sampled, NaN elsewhere.
    block, blocks: index of the block that comes next, and the number of blocks.
    step, steps: index of the step that comes next within that block, and how many it has at most.
    taken: steps that the row has taken.
    log_probs: float32 [length], of each generated token in the step that wrote it, else NaN; None: they are not kept.
    """

    canvas: Tensor
    tentative: Tensor
    confidence: Tensor
    block: int
    blocks: int
    step: int
    steps: int
    taken: int
    log_probs: Tensor | None


def show(canvas: Tensor, state: State, policy: Policy, rows: Tensor, progress: Progress) -> Step:
    """The last step of a call.

    Args:
        canvas: int64 [B, L], of all rows; those that have left the batch are final.
        state: of the rows `rows`, int64 [b], with at most L columns.
        policy: of the call.
        rows: which of the B rows the state holds.
        progress: before the step.
    """
    canvas, tentative = canvas.clone(), canvas.clone()
    confidence = torch.full(canvas.shape, torch.nan, dtype=torch.float32, device=canvas.device)
    columns = min(state.tokens.shape[1], canvas.shape[1])
    real = torch.arange(columns, device=canvas.device) < state.length[:, None]
    for shown, values in zip((canvas, tentative, confidence), _layers(state, policy), strict=True):
        shown[rows, :columns] = torch.where(real, values[:, :columns], shown[rows, :columns])
    return Step(canvas, tentative, confidence, *progress)


def view(state: State, policy: Policy, places: Sequence[int]) -> list[RowView]:
    """Rows of a state, by their places in it. Waits for the device."""
    rows = state.rows(torch.tensor(places, dtype=torch.int64, device=state.tokens.device))
    layers, found = _layers(rows, policy), []
    now = CurrentBlock.of(rows.schedule)
    numbers = torch.stack([rows.length, rows.block, rows.blocks, rows.step, now.steps, rows.row_steps]).T.tolist()
    for place, (length, *progress) in enumerate(numbers):
        log_probs = None if rows.log_probs is None else rows.log_probs[place, :length].clone()
        found.append(RowView(*(layer[place, :length].clone() for layer in layers), *progress, log_probs))
    return found


def _layers(state: State, policy: Policy) -> tuple[Tensor, Tensor, Tensor]:
    """Canvas, tentative tokens and confidences [B, L] after the last step; finished rows are filled with EOS."""
    columns = state.tokens.shape[1]
    column = state.start[:, None] + torch.arange(state.proposals.shape[1], device=state.tokens.device)
    proposed, column = (state.proposals >= 0) & (column < columns), column.clamp(max=columns - 1)
    filled = state.tokens.clone()
    row, place = proposed.nonzero(as_tuple=True)
    column, tokens = column[row, place], state.proposals[row, place]
    masked = filled[row, column] == policy.mask_id
    filled[row[masked], column[masked]] = tokens[masked]
    confidence = torch.full(filled.shape, torch.nan, dtype=torch.float32, device=filled.device)
    confidence[row, column] = state.confidence[row, place]
    done = (state.block >= state.blocks)[:, None]
    canvas, tentative = (torch.where(done, ended(state, policy, tokens), tokens) for tokens in (state.tokens, filled))
    return canvas, tentative, confidence
