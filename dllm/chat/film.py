"""The denoising of B rows as frames, one frame per row and step: what views draw and replays contain."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dllm.chat.tokens import COMMITTED, GIVEN, MASKED, NEW, NO_TOKEN, state
from dllm_kernels.align_tokens import BLANK, align_tokens


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


def first_frame(tokens: list[int], mask_id: int) -> Frame:
    """The frame before the first step: tokens that are not masks are given.

    Example:
        >>> first_frame([5, 0], mask_id=0).states
        ['given', 'masked']
    """
    states = [MASKED if token == mask_id else GIVEN for token in tokens]
    return Frame(tokens, states, [None] * len(tokens))


class Film:
    """Records the frames of B rows, step by step.

    Args:
        mask_id: id of the mask token; NO_TOKEN of models that have none.
        spans: for each row the columns to record.
        start: canvases [B, L] before the first step; tokens in them that are not masks are "given". None: all recorded
            columns begin as masks.
        padding: of rows that grow and shrink, the tokens that pad them on the right. A token then keeps its state
            where the fewest edits from one step to the next put it. None: a token is that of its column.

    Example:
        >>> film = Film(0, [slice(1, None)])
        >>> film.add(torch.tensor([[5, 0, 6]]), torch.tensor([[5, 7, 6]]))
        [Frame(tokens=[7, 6], states=['tentative', 'new'], confidence=[None, None])]
    """

    def __init__(
        self,
        mask_id: int,
        spans: Sequence[slice],
        start: Tensor | None = None,
        padding: Collection[int] | None = None,
    ):
        self.mask_id, self.spans, self.padding = mask_id, list(spans), padding
        self.rows: list[list[Frame]] = [[] for _ in self.spans]
        if start is not None:
            self._begin(start)

    def add(
        self,
        canvas: Tensor,
        tentative: Tensor | None = None,
        confidence: Tensor | None = None,
        open: Tensor | None = None,
    ) -> list[Frame]:
        """Record one more step; returns the new frame of each row.

        Args:
            canvas: int64 [B, L].
            tentative: int64 [B, L], the canvas with proposals in place of masks, see :class:`dllm.fast.Step`; without
                it no token is tentative.
            confidence: float [B, L], NaN where nothing was proposed.
            open: bool [B, L], of models without masks: where no token of `canvas` is final. What was proposed there is
                tentative.
        """
        if not all(self.rows):
            self._begin(torch.full_like(canvas, self.mask_id))
        canvas = canvas.cpu()
        tentative = canvas if tentative is None else tentative.cpu()
        confidence = torch.full(canvas.shape, math.nan) if confidence is None else confidence.float().cpu()
        if open is not None:
            open = open.cpu()
            canvas = canvas.masked_fill(open, NO_TOKEN)
            tentative = tentative.masked_fill(open & confidence.isnan(), NO_TOKEN)
        for row, (span, frames) in enumerate(zip(self.spans, self.rows, strict=True)):
            columns, before = [table[row, span].tolist() for table in (canvas, tentative, confidence)], frames[-1]
            if self.padding is not None:
                end = _without_padding(columns[0], set(self.padding)).stop
                columns = [column[:end] for column in columns]
                before = self._moved(before, columns[0])
            frames.append(self._frame(before, *columns))
        return [frames[-1] for frames in self.rows]

    def _begin(self, start: Tensor) -> None:
        for row, span in enumerate(self.spans):
            self.rows[row] = [first_frame(start[row, span].tolist(), self.mask_id)]

    def _moved(self, before: Frame, tokens: list[int]) -> Frame:
        """The frame before, its tokens where these tokens are: aligned with the fewest edits, with masks for what was
        inserted and without what was deleted."""
        rows = [torch.tensor([row], dtype=torch.int64) for row in (before.tokens, tokens)]
        aligned = align_tokens(rows[0], torch.tensor([len(before.tokens)]), rows[1], torch.tensor([len(tokens)]))
        old, columns = iter(zip(*before, strict=True)), []
        for earlier, now in zip(aligned.z0[0].tolist(), aligned.z1[0].tolist(), strict=True):
            entry = next(old) if earlier != BLANK else (self.mask_id, MASKED, None)
            if now != BLANK:
                columns.append(entry)
        return Frame(*map(list, zip(*columns, strict=True))) if columns else Frame([], [], [])

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

    Padding at either end of a row is not recorded. Canvases of different widths are those of rows that grow and shrink.
    Where the first canvas has no masks, the columns that change later are those that are generated.

    Raises:
        TypeError: `histories` holds something other than tensors of token ids.
        ValueError: no canvas, canvases of different numbers of rows, or of different widths and a tokenizer without a
            mask token.
    """
    histories = list(histories)
    if not histories:
        raise ValueError("expected the canvases of at least one step, got none")
    if not all(isinstance(canvas, Tensor) and canvas.dim() in (1, 2) for canvas in histories):
        raise TypeError("histories must hold tensors of token ids, [B, L] or [L]")
    if len({canvas.shape[:-1] for canvas in histories}) > 1:
        got = sorted({tuple(canvas.shape) for canvas in histories})
        raise ValueError(f"canvases must have one number of rows, got shapes {got}")
    mask_id = tokenizer.mask_token_id
    canvases = [canvas.cpu().reshape(-1, canvas.shape[-1]) for canvas in histories]
    one_width = len({canvas.shape for canvas in canvases}) == 1
    if one_width and (mask_id is None or not bool((canvases[0] == mask_id).any())):
        mask_id, canvases = NO_TOKEN, _without_noise(canvases)
    if mask_id is None:
        raise ValueError(f"the tokenizer must have a mask token, got none ({type(tokenizer).__name__})")
    start, *later = canvases
    padding = {getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id")}
    spans = [_without_padding(row, padding) for row in start.tolist()]
    if one_width:
        film = Film(mask_id, spans, start)
    else:
        real = (start[row, span].tolist() for row, span in enumerate(spans))
        film = Film(mask_id, [slice(span.start, None) for span in spans], padding=padding)
        film.rows = [[first_frame(tokens, mask_id)] for tokens in real]
    for canvas in later:
        film.add(canvas)
    return film


def _without_noise(canvases: list[Tensor]) -> list[Tensor]:
    """Canvases [B, L] of a model without masks, with NO_TOKEN where nothing has been generated yet: in the columns that
    change, as long as they have not.

    Example:
        >>> [canvas.tolist() for canvas in _without_noise([torch.tensor([[5, 0]]), torch.tensor([[5, 7]])])]
        [[[5, -1]], [[5, 7]]]
    """
    begun = (torch.stack(canvases) != canvases[0]).cumsum(0) > 0
    waits = begun[-1] & ~begun
    return [canvas.masked_fill(place, NO_TOKEN) for canvas, place in zip(canvases, waits, strict=True)]


def _without_padding(row: list[int], padding: set[int | None]) -> slice:
    """The columns from the first to the last token that is not padding."""
    real = [column for column, token in enumerate(row) if token not in padding]
    return slice(real[0], real[-1] + 1) if real else slice(0, 0)
