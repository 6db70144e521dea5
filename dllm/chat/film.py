"""The denoising of B rows as frames, one frame per row and step: what views draw and replays contain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dllm.chat.tokens import COMMITTED, GIVEN, MASKED, NEW, state


class Frame(NamedTuple):
    """One row after one step; entry i of each list belongs to token i.

    tokens: token ids, with this step's proposals in place of masks.
    states: for each token one of :data:`dllm.chat.tokens.STATES`.
    confidence: the sampler's confidence in the token when it was proposed; None where nothing was proposed.
    """

    tokens: list[int]
    states: list[str]
    confidence: list[float | None]

    @property
    def committed(self) -> int:
        """Number of generated tokens that are committed."""
        return sum(kind in (NEW, COMMITTED) for kind in self.states)

    @property
    def generated(self) -> int:
        """Number of tokens that were masks before the first step."""
        return sum(kind != GIVEN for kind in self.states)


class Film:
    """Records the frames of B rows, step by step.

    Args:
        mask_id: id of the mask token.
        spans: for each row the columns to record.
        start: canvases [B, L] before the first step; tokens in them that are not masks are "given". None: all recorded
            columns begin as masks.

    Example:
        >>> film = Film(0, [slice(1, None)])
        >>> film.add(torch.tensor([[5, 0, 6]]), torch.tensor([[5, 7, 6]]))
        [Frame(tokens=[7, 6], states=['tentative', 'new'], confidence=[None, None])]
    """

    def __init__(self, mask_id: int, spans: Sequence[slice], start: Tensor | None = None):
        self.mask_id, self.spans = mask_id, list(spans)
        self.rows: list[list[Frame]] = [[] for _ in self.spans]
        if start is not None:
            self._begin(start)

    def add(self, canvas: Tensor, tentative: Tensor | None = None, confidence: Tensor | None = None) -> list[Frame]:
        """Record one more step; returns the new frame of each row.

        Args:
            canvas: int64 [B, L].
            tentative: int64 [B, L], the canvas with proposals in place of masks, see :class:`dllm.fast.Step`; without
                it no token is tentative.
            confidence: float [B, L], NaN where nothing was proposed.
        """
        if not all(self.rows):
            self._begin(torch.full_like(canvas, self.mask_id))
        canvas = canvas.cpu()
        tentative = canvas if tentative is None else tentative.cpu()
        confidence = torch.full(canvas.shape, math.nan) if confidence is None else confidence.float().cpu()
        for row, (span, frames) in enumerate(zip(self.spans, self.rows, strict=True)):
            columns = (table[row, span].tolist() for table in (canvas, tentative, confidence))
            frames.append(self._frame(frames[-1], *columns))
        return [frames[-1] for frames in self.rows]

    def _begin(self, start: Tensor) -> None:
        for row, span in enumerate(self.spans):
            tokens = start[row, span].tolist()
            states = [MASKED if token == self.mask_id else GIVEN for token in tokens]
            self.rows[row] = [Frame(tokens, states, [None] * len(tokens))]

    def _frame(self, before: Frame, canvas: list[int], tentative: list[int], confidence: list[float]) -> Frame:
        earlier = zip(before.tokens, before.states, strict=True)
        states = [
            state(now, proposed, self.mask_id, past)
            for now, proposed, past in zip(canvas, tentative, earlier, strict=True)
        ]
        known = [
            (old if kind != MASKED else None) if math.isnan(new) else new
            for new, old, kind in zip(confidence, before.confidence, states, strict=True)
        ]
        return Frame(tentative, states, known)


def film_from_histories(tokenizer: Any, histories: Sequence[Tensor]) -> Film:
    """The film of a sampler's `histories`: canvases [B, L] or [L], the first from before the first step.

    Padding at either end of a row is not recorded.

    Raises:
        TypeError: `histories` holds something other than tensors of token ids.
        ValueError: no canvas, canvases of different shapes, or a tokenizer without a mask token.
    """
    histories = list(histories)
    if not histories:
        raise ValueError("expected the canvases of at least one step, got none")
    if not all(isinstance(canvas, Tensor) and canvas.dim() in (1, 2) for canvas in histories):
        raise TypeError("histories must hold tensors of token ids, [B, L] or [L]")
    if len({canvas.shape for canvas in histories}) > 1:
        raise ValueError(f"canvases must have one shape, got {sorted({tuple(c.shape) for c in histories})}")
    mask_id = tokenizer.mask_token_id
    if mask_id is None:
        raise ValueError(f"the tokenizer must have a mask token, got none ({type(tokenizer).__name__})")
    start, *later = [canvas.cpu().reshape(-1, canvas.shape[-1]) for canvas in histories]
    padding = {getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id")}
    film = Film(mask_id, [_without_padding(row, padding) for row in start.tolist()], start)
    for canvas in later:
        film.add(canvas)
    return film


def _without_padding(row: list[int], padding: set[int | None]) -> slice:
    """The columns from the first to the last token that is not padding."""
    real = [column for column, token in enumerate(row) if token not in padding]
    return slice(real[0], real[-1] + 1) if real else slice(0, 0)
