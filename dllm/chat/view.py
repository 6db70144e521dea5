"""The base class of everything that shows denoising steps while they run, and the one that prints plain lines."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, TextIO

from dllm.chat.film import Film, Frame
from dllm.chat.tokens import TENTATIVE, pieces, runs
from dllm.fast import Step

PLAIN_LINES = 5


class Progress(NamedTuple):
    """How far the denoising is.

    done, total: steps.
    tokens: committed tokens of all rows.
    seconds: since the view was opened, s; None in a replay.
    """

    done: int
    total: int
    tokens: int
    seconds: float | None


class View(ABC):
    """Shows the steps of one call of a sampler: ``with View(...) as view: sampler.sample(..., on_step=view.show)``.

    Args:
        tokenizer: decodes the token ids.
        titles: one per row.
        film: records every step; its spans are the columns that are shown.
    """

    def __init__(self, tokenizer: Any, titles: Sequence[str], film: Film):
        self.tokenizer, self.titles, self.film = tokenizer, list(titles), film
        self.began, self.waiting = time.perf_counter(), None

    def __enter__(self) -> View:
        self.began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Draw the last state if it has not been drawn: a row may finish before the last step of its schedule."""
        if self.waiting:
            self._draw_waiting()

    def show(self, step: Step) -> None:
        """Record a step, and draw the state after it if a frame is due."""
        frames = self.film.add(step.canvas, step.tentative, step.confidence, step.open)
        done, total = step.block * step.steps + step.step + 1, step.blocks * step.steps
        tokens = sum(frame.committed for frame in frames)
        self.waiting = frames, Progress(done, total, tokens, time.perf_counter() - self.began)
        if done == total or self.due(done, total):
            self._draw_waiting()

    def _draw_waiting(self) -> None:
        self.draw(*self.waiting)
        self.waiting = None

    @abstractmethod
    def due(self, done: int, total: int) -> bool:
        """Whether to draw after step `done` of `total`; the last step is always drawn."""

    @abstractmethod
    def draw(self, frames: Sequence[Frame], progress: Progress) -> None:
        """Draw one frame per row."""


class PlainView(View):
    """Prints about five steps as lines of text, for files, pipes and terminals that cannot redraw."""

    def __init__(self, tokenizer: Any, titles: Sequence[str], film: Film, stream: TextIO):
        super().__init__(tokenizer, titles, film)
        self.stream = stream

    def due(self, done: int, total: int) -> bool:
        """True after every fifth of the steps."""
        return done % max(1, total // PLAIN_LINES) == 0

    def draw(self, frames: Sequence[Frame], progress: Progress) -> None:
        """Print a heading, and one line per row."""
        print(f"step {progress.done} of {progress.total}: · masked, (tentative), committed", file=self.stream)
        for title, frame in zip(self.titles, frames, strict=True):
            print(f"  {title} | {plain_text(self.tokenizer, frame)}", file=self.stream, flush=True)


def plain_text(tokenizer: Any, frame: Frame) -> str:
    """A frame as text: tentative tokens in parentheses, masks as dots, consecutive ends of text as one with a count.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> tokens = [*tokenizer("6 * 7").input_ids, *[tokenizer.eos_token_id] * 3]
        >>> plain_text(tokenizer, Frame(tokens, ["committed", "tentative", *["committed"] * 4], [None] * 6))
        '6 (*) 7 ∎×3'
    """
    words = []
    for kind, text in runs(pieces(tokenizer, frame.tokens), frame.states):
        words += [f"({word})" if kind == TENTATIVE else word for word in text.split()]
    return " ".join(words)
