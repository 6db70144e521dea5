"""Step: what the `on_step` callback is given after each denoising step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dllm.fast.sampling.state import Policy, State


class Step(NamedTuple):
    """The canvas after one denoising step. Tensors are copies, in the caller's layout.

    canvas: int64 [B, L], masks where nothing is committed yet.
    tentative: int64 [B, L], the canvas with this step's sampled tokens in place of the masks that it might have
        committed.
    confidence: float32 [B, L], the confidence of this step's sampled tokens (log-probabilities, by default), NaN
        elsewhere.
    block, blocks: index of the current block and the number of blocks, of the row that is farthest behind.
    step, steps: index of the step within that block, and how many it has at most.
    """

    canvas: Tensor
    tentative: Tensor
    confidence: Tensor
    block: int
    blocks: int
    step: int
    steps: int


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


def show(
    canvas: Tensor,
    state: State,
    policy: Policy,
    rows: Tensor,
    progress: Progress,
    end: Callable[[Tensor, Tensor], Tensor],
) -> Step:
    """The last step of a call.

    Args:
        canvas: int64 [B, L], of all rows; those that have left the batch are final.
        state: of the rows `rows`, int64 [b].
        policy: of the call.
        rows: which of the B rows the state holds.
        progress: before the step.
        end: called with canvases and row indices; fills finished rows with EOS.
    """
    canvas, tentative = canvas.clone(), canvas.clone()
    confidence = torch.full(canvas.shape, torch.nan, dtype=torch.float32, device=canvas.device)
    column = state.start[:, None] + torch.arange(policy.window, device=canvas.device)
    current = state.tokens.gather(1, column)
    proposed = state.proposals >= 0
    still_masked = (current == policy.mask_id) & proposed
    filled = state.tokens.scatter(1, column, torch.where(still_masked, state.proposals, current))
    done = (state.block >= state.blocks)[:, None]
    for shown, tokens in ((canvas, state.tokens), (tentative, filled)):
        shown[rows] = torch.where(done, end(tokens, rows), tokens)
    ranked = torch.where(proposed, state.confidence, torch.nan)
    confidence[rows] = confidence[rows].scatter(1, column, ranked)
    return Step(canvas, tentative, confidence, *progress)
