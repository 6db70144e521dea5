"""The loop of uniform diffusion: each row denoises one canvas after the other, at steps of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from dllm.fast.sampling.cache import SPARE, KeyValueCache
from dllm.fast.sampling.ends import Finished
from dllm.fast.sampling.loop import NoFiniteLogit
from dllm.fast.uniform.model import DiffusionGemma
from dllm.fast.uniform.step import (
    CanvasStep,
    canvas_step,
    is_settled,
    next_canvas,
    noise,
    stability,
    temperature_of,
)
from dllm_kernels import linear_gumbel_argmax


class CanvasSettings(NamedTuple):
    """How canvases are denoised; see :class:`dllm.core.samplers.DiffusionGemmaSamplerConfig`.

    ends: tokens that end a row.
    log_probs: whether those of the result are wanted.
    """

    max_new_tokens: int
    steps: int
    t_min: float
    t_max: float
    entropy_bound: float
    stability_threshold: int
    confidence_threshold: float
    ends: Sequence[int]
    log_probs: bool
    impl: str


class CanvasView(NamedTuple):
    """What a step has made of one row: what its next forward reads, the likeliest tokens, and their neg_entropy, [L]
    each, of canvas number `canvas`; `done`: they are its result."""

    row: int
    canvas: int
    step: int
    read: Tensor
    draft: Tensor
    neg_entropy: Tensor
    done: bool


@dataclass(slots=True)
class CanvasRows:
    """The b rows that are still denoised, L positions each."""

    row: Tensor  # int64 [b], in the call
    seeds: Tensor  # int64 [b]
    length: Tensor  # int64 [b], columns before the canvas
    number: Tensor  # int64 [b], of the canvas
    step: Tensor  # int64 [b], within the canvas
    canvas: Tensor  # int64 [b, L], what the next forward reads
    argmax: Tensor  # int64 [b, L], of the last step; -1 before the first
    stable: Tensor  # int64 [b], for how many steps argmax has stayed as it is
    signal: Tensor  # [b, L, H], of the last step; zeros before the first

    def kept(self, index: Tensor) -> CanvasRows:
        """The rows `index`."""
        return CanvasRows(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def joined(self, others: CanvasRows) -> CanvasRows:
        """These rows, and others behind them."""
        names = [field.name for field in fields(self)]
        return CanvasRows(**{name: torch.cat([getattr(self, name), getattr(others, name)]) for name in names})


class CanvasLoop:
    """Denoises rows of any lengths together. A row that has ended leaves the batch and costs nothing more.

    Args:
        model: its parts.
        settings: of the call.

    Attributes:
        tokens: of each row what it has generated, whole canvases, int64.
        log_probs: of each row log softmax(l) of these, float32, where they are wanted.
        forwards, encoded: how often the decoder and the encoder have run.
        row_forwards: in how many decoder runs each row took part.
        row_seconds: each row's share of the time, s: that of a step is divided among the rows that ran.
        cache_bytes: of the keys and values.
    """

    def __init__(self, model: DiffusionGemma, settings: CanvasSettings):
        self.model, self.settings = model, settings
        self.forwards = self.encoded = self.cache_bytes = 0
        self.row_forwards: list[int] = []
        self.row_seconds: list[float] = []
        self.tokens: list[Tensor] = []
        self.log_probs: list[Tensor] = []

    @torch.no_grad()
    def run(
        self,
        prompts: Sequence[Tensor],
        seeds: Tensor,
        show: Callable[[list[CanvasView]], object] | None = None,
        *,
        rows: int | None = None,
        finished: Finished | None = None,
        on_row: Callable[[int], object] | None = None,
    ) -> None:
        """Denoise. Where only some rows run together, the longest prompts come first, so that memory is at its highest
        at the start, and the next prompt takes the place of a row that has ended.

        Args:
            prompts: B rows of int64, of at least one token each, on the model's device.
            seeds: int64 [B].
            show: called with a view of each row that took part in a step.
            rows: how many run together, at most; None: all.
            finished: called with the number of a row and what it has generated, a list, at the end of each canvas that
                another one would follow. True ends the row.
            on_row: called with the number of a row that has ended.

        Raises:
            NoFiniteLogit: a row's logits had no finite number.
        """
        size, device = self.model.canvas_length, self.model.device
        self.row_forwards, self.row_seconds = [0] * len(prompts), [0.0] * len(prompts)
        self.tokens = [torch.zeros(0, dtype=torch.int64, device=device) for _ in prompts]
        self.log_probs = [torch.zeros(0, device=device) for _ in prompts]
        self._prompts, self._seeds, self._finished = prompts, seeds, finished
        if not len(prompts):
            return
        lengths = [len(prompt) for prompt in prompts]
        waiting = list(range(len(prompts)))
        if rows is not None and rows < len(prompts):
            waiting.sort(key=lambda number: -lengths[number])
        rows = len(prompts) if rows is None else min(rows, len(prompts))
        columns = max(lengths) + (self.canvases - 1) * size
        cache = SPARE.take(self.model.layout(), rows=rows, columns=columns, device=device)
        self.cache_bytes, now = cache.bytes, None
        try:
            while waiting or len(now.row):
                began = time.perf_counter()
                if coming := waiting[: rows - (0 if now is None else len(now.row))]:
                    now, waiting = self._join(now, coming, cache), waiting[len(coming) :]
                active = now.row.tolist()
                now = self._step(now, cache, show)
                share = (time.perf_counter() - began) / len(active)
                for row in active:
                    self.row_seconds[row] += share
                left = set(active) - set(now.row.tolist()) if len(now.row) < len(active) else ()
                for row in sorted(left) if on_row is not None else ():
                    on_row(row)
        finally:
            SPARE.give_back(cache)

    @property
    def canvases(self) -> int:
        """The most canvases of a row."""
        return -(-self.settings.max_new_tokens // self.model.canvas_length)

    def _join(self, now: CanvasRows | None, coming: list[int], cache: KeyValueCache) -> CanvasRows:
        """The rows that run, and behind them those `coming`, whose prompts are encoded."""
        device, size, count = self.model.device, self.model.canvas_length, len(coming)
        prompts, row = [self._prompts[number] for number in coming], torch.tensor(coming, device=device)
        length = torch.tensor([len(prompt) for prompt in prompts], device=device)
        column = torch.arange(int(length.max()), device=device).expand(count, -1)
        tokens = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
        place = torch.arange(count, device=device) + (0 if now is None else len(now.row))
        self.model.encode(cache, place, tokens, column, column < length[:, None])
        self.encoded += 1
        zeros = torch.zeros_like(length)
        rows = CanvasRows(
            row=row,
            seeds=self._seeds[row],
            length=length,
            number=zeros,
            step=zeros,
            canvas=row.new_empty(count, size),
            argmax=row.new_empty(count, size),
            stable=zeros,
            signal=self.model.head.weight.new_empty(count, size, self.model.head.in_features),
        )
        rows = self._fresh(rows, torch.ones_like(length, dtype=torch.bool))
        return rows if now is None else now.joined(rows)

    def _fresh(self, rows: CanvasRows, begins: Tensor) -> CanvasRows:
        """A canvas of noise for the rows `begins`, bool [b]."""
        chosen = begins[:, None]
        rows.step = torch.where(begins, 0, rows.step)
        rows.stable = torch.where(begins, 0, rows.stable)
        rows.argmax = torch.where(chosen, -1, rows.argmax)
        rows.signal = torch.where(chosen[:, :, None], 0, rows.signal)
        first = noise(rows.seeds, self._positions(rows), rows.step, self.model.vocab_size)
        rows.canvas = torch.where(chosen, first, rows.canvas)
        return rows

    def _positions(self, rows: CanvasRows) -> Tensor:
        return rows.length[:, None] + torch.arange(self.model.canvas_length, device=self.model.device)

    def _step(
        self,
        rows: CanvasRows,
        cache: KeyValueCache,
        show: Callable[[list[CanvasView]], object] | None,
    ) -> CanvasRows:
        """One step of all rows; returns those that go on."""
        settings, model = self.settings, self.model
        hidden = model.decode(cache, rows.length, rows.canvas, rows.signal)
        self.forwards += 1
        positions = self._positions(rows)
        found = canvas_step(
            hidden,
            model.head,
            softcap=model.softcap,
            temperature=temperature_of(rows.step, settings.steps, settings.t_min, settings.t_max),
            seeds=rows.seeds,
            positions=positions,
            step=rows.step,
            entropy_bound=settings.entropy_bound,
            embeds=settings.steps > 1,
            impl=settings.impl,
        )
        over, failed, row, number, step = self._outcome(rows, found)
        for place, wrong in enumerate(failed):
            if wrong:
                raise NoFiniteLogit(
                    f"row {row[place]}: no logit was finite at step {self.row_forwards[row[place]]}, "
                    "so no token could be chosen"
                )
        for index in row:
            self.row_forwards[index] += 1
        rows.argmax = found.argmax
        rows.canvas = next_canvas(found, rows.seeds, positions, rows.step, model.vocab_size)
        if show is not None:
            show([CanvasView(*seen) for seen in zip(
                row, number, step, rows.canvas, rows.argmax, found.neg_entropy, over, strict=True
            )])  # fmt: skip
        if found.embedding is not None:
            rows.signal = model.embedding_of(found.embedding)
        rows.step = rows.step + 1
        if any(over):
            rows = self._finish(rows, hidden, over, cache)
        return rows

    def _outcome(self, rows: CanvasRows, found: CanvasStep) -> tuple[list, ...]:
        """Which canvases are over with a step, which rows have failed, and the rows', canvases' and steps' numbers: all
        that the host reads in a step, at once."""
        settings = self.settings
        rows.stable = stability(found, rows.argmax, rows.stable)
        settled = is_settled(found, rows.stable, settings.stability_threshold, settings.confidence_threshold)
        over = settled | (rows.step + 1 >= settings.steps)
        failed = (found.token < 0).any(1)
        return tuple(torch.stack([over, failed, rows.row, rows.number, rows.step]).tolist())

    def _finish(self, rows: CanvasRows, hidden: Tensor, over: list, cache: KeyValueCache) -> CanvasRows:
        """Take the results of the canvases that are over, encode them, and begin the next; rows that end leave."""
        settings, device = self.settings, self.model.device
        places = [place for place, value in enumerate(over) if value]
        index = torch.tensor(places, device=device)
        result = rows.argmax[index]
        ends = torch.isin(result, torch.tensor(settings.ends, dtype=torch.int64, device=device)).any(1)
        last = (rows.number[index] + 1 >= self.canvases) | ends
        log_probs = self._log_probs(hidden[index]) if settings.log_probs else None
        for place, row in enumerate(rows.row[index].tolist()):
            self.tokens[row] = torch.cat([self.tokens[row], result[place]])
            if log_probs is not None:
                self.log_probs[row] = torch.cat([self.log_probs[row], log_probs[place]])
        last = self._ended_by_caller(rows.row[index].tolist(), last)
        going_on = index[~last]
        if len(going_on):
            column = self._positions(rows)[going_on]
            self.model.encode(cache, going_on, rows.argmax[going_on], column, torch.ones_like(column, dtype=torch.bool))
            self.encoded += 1
        begins = torch.zeros(len(over), dtype=torch.bool, device=device).index_fill(0, going_on, True)
        rows.length = torch.where(begins, rows.length + self.model.canvas_length, rows.length)
        rows.number = rows.number + begins
        rows = self._fresh(rows, begins)
        if bool(last.any()):
            leaves = torch.zeros_like(begins).index_fill(0, index[last], True)
            staying = (~leaves).nonzero().flatten()
            cache.keep(staying.tolist())
            rows = rows.kept(staying)
        return rows

    def _ended_by_caller(self, rows: Sequence[int], last: Tensor) -> Tensor:
        """`last`, bool, with those of these rows that the caller ends."""
        if self._finished is None:
            return last
        seen = zip(rows, last.tolist(), strict=True)
        ended = [over or bool(self._finished(row, self.tokens[row].tolist())) for row, over in seen]
        return torch.tensor(ended, device=last.device)

    def _log_probs(self, hidden: Tensor) -> Tensor:
        """log softmax(l) of the likeliest tokens, float32 [r, L]: no temperature is applied."""
        head, flat = self.model.head, hidden.flatten(0, 1)
        found = linear_gumbel_argmax(
            flat.to(head.weight.dtype), head.weight, head.bias, softcap=self.model.softcap, impl=self.settings.impl
        )
        return found.log_prob.view(hidden.shape[:2])
