"""The canvases of a call of uniform diffusion, step by step, for histories and the live view."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dllm.core.samplers.canvas_loop import CanvasSettings, CanvasView
from dllm.fast.sampling.live import Step


class CanvasFilm:
    """Takes up what a step has made of each row, and shows all rows.

    Args:
        prompts: of the call.
        size: of a canvas.
        settings: of the call.
        pad: the token behind the end of a row, and where no canvas has begun.
        keeps: whether `histories` are wanted.
        on_step: called with each step.

    Attributes:
        histories: int64 [B, L] before the first step and after each.
    """

    def __init__(
        self,
        prompts: Sequence[Tensor],
        size: int,
        settings: CanvasSettings,
        pad: int,
        keeps: bool,
        on_step: Callable[[Step], object] | None,
    ):
        self.lengths, self.size, self.settings, self.pad = [len(prompt) for prompt in prompts], size, settings, pad
        self.keeps, self.on_step = keeps, on_step
        self.canvases = -(-settings.max_new_tokens // size)
        width = max(self.lengths, default=0) + self.canvases * size
        device = prompts[0].device if len(prompts) else torch.device("cpu")
        self.read = torch.full((len(prompts), width), pad, dtype=torch.int64, device=device)
        self.open = torch.zeros(self.read.shape, dtype=torch.bool, device=device)
        for row, prompt in enumerate(prompts):
            self.read[row, : len(prompt)] = prompt
            self.open[row, len(prompt) : len(prompt) + self.canvases * size] = True
        self.histories = [self.read.clone()] if keeps else []

    def show(self, views: list[CanvasView]) -> None:
        """Take up a step."""
        draft = self.read.clone()
        confidence = torch.full(self.read.shape, torch.nan, device=self.read.device)
        for view in views:
            begin = self.lengths[view.row] + view.canvas * self.size
            place = (view.row, slice(begin, begin + self.size))
            likeliest = view.draft
            if view.done:
                likeliest = self._close(view, begin)
            self.read[place] = likeliest if view.done else view.read
            draft[place] = likeliest
            confidence[place] = view.neg_entropy
        if self.keeps:
            self.histories.append(self.read.clone())
        if self.on_step is not None:
            last = min(views, key=lambda view: (view.canvas, view.step))
            progress = last.canvas, self.canvases, last.step, self.settings.steps
            self.on_step(Step(self.read.clone(), draft, confidence, *progress, self.open.clone()))

    def _close(self, view: CanvasView, begin: int) -> Tensor:
        """The result of a canvas that is over, whose positions are no longer open; those behind it neither, if the row
        ends there."""
        ends = self.settings.ends
        row_ends = bool(torch.isin(view.draft, torch.tensor(ends, dtype=torch.int64, device=view.draft.device)).any())
        self.open[view.row, : None if row_ends else begin + self.size] = False
        return ended(view.draft, ends, self.pad)


def ended(tokens: Tensor, ends: Sequence[int], pad: int) -> Tensor:
    """Tokens [n] of a row, with padding behind its end.

    Example:
        >>> ended(torch.tensor([5, 1, 6]), ends=[1, 2], pad=0).tolist()
        [5, 1, 0]
    """
    return torch.where(after_end(tokens, ends), pad, tokens)


def after_end(tokens: Tensor, ends: Sequence[int]) -> Tensor:
    """Which tokens of a row stand behind the first that ends it, bool."""
    at = torch.isin(tokens, torch.tensor(list(ends), dtype=torch.int64, device=tokens.device))
    return at.cumsum(0) - at.long() > 0
