"""The live view: panels on a terminal that are redrawn with every step (needs rich)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dllm.chat.film import Film, Frame
from dllm.chat.tokens import COMMITTED, GIVEN, MASKED, NEW, TENTATIVE, pieces, runs
from dllm.chat.view import Progress, View

STYLES = {
    GIVEN: "dim",
    MASKED: "bright_black",
    TENTATIVE: "italic yellow",
    NEW: "bold green",
    COMMITTED: "bold",
}
SECONDS_BETWEEN_FRAMES = 1 / 30  # faster redrawing is not visible
MODEL_PER_DRAWING = 4  # between two frames the model runs at least this many times as long as one takes to draw


class LiveView(View):
    """Draws one panel per row; above them progress, tokens per second and a legend.

    Args:
        tokenizer, titles, film: see :class:`~dllm.chat.view.View`.
        console: rich's console to draw on.
        pace: draw every step, and keep each frame for at least this many seconds; 0: draw at most 30 frames a second
            and skip the steps between.
        transient: erase the panels at the end.
    """

    def __init__(
        self,
        tokenizer: Any,
        titles: Sequence[str],
        film: Film,
        console: Console,
        *,
        pace: float = 0.0,
        transient: bool = False,
    ):
        super().__init__(tokenizer, titles, film)
        self.pace, self.next = pace, 0.0
        self.live = Live(console=console, auto_refresh=False, transient=transient)

    def __enter__(self) -> LiveView:
        super().__enter__()
        self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.live.__exit__(kind, error, trace)

    def due(self, done: int, total: int) -> bool:
        """True where every step is drawn (`pace`), or when the last frame has been shown long enough."""
        return bool(self.pace) or time.perf_counter() >= self.next

    def draw(self, frames: Sequence[Frame], progress: Progress) -> None:
        """Redraw. The panels come last, because rich cuts off at the bottom what does not fit."""
        began = time.perf_counter()
        shown = panels(self.tokenizer, self.titles, frames)
        total = sum(frame.generated for frame in frames)
        self.live.update(Group(bar(progress, total), legend(), *shown), refresh=True)
        now = time.perf_counter()
        self.next = now + max(SECONDS_BETWEEN_FRAMES, MODEL_PER_DRAWING * (now - began))
        time.sleep(self.pace)


def colored_text(tokenizer: Any, frame: Frame) -> Text:
    """The text of a frame, colored by the states of its tokens."""
    text = Text()
    for kind, words in runs(pieces(tokenizer, frame.tokens), frame.states):
        text.append(words, STYLES[kind])
    return text


def panels(tokenizer: Any, titles: Sequence[str], frames: Sequence[Frame]) -> list[Panel]:
    """One panel per row."""
    return [
        Panel(colored_text(tokenizer, frame), title=Text(title), title_align="left")
        for title, frame in zip(titles, frames, strict=True)
    ]


def legend() -> Text:
    """The states of a token in their colors."""
    return Text.assemble(*((f" {kind} ", STYLES[kind]) for kind in (MASKED, TENTATIVE, NEW, COMMITTED)))


def bar(progress: Progress, tokens: int) -> RenderableType:
    """One line: steps as a bar and in numbers, committed tokens of those to generate, tokens per second."""
    line = Table.grid(padding=(0, 2))
    line.add_row(
        ProgressBar(total=progress.total, completed=progress.done, width=24),
        f"step {progress.done} of {progress.total}",
        f"{progress.tokens} of {tokens} tokens",
        f"{progress.tokens / progress.seconds:.0f} tokens/s" if progress.seconds else "",
    )
    return line
