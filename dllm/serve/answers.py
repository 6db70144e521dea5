"""What the engine's thread tells of a row, kept for whoever writes the response."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from dllm.fast.sampling.live import RowView
from dllm.serve.text import AnswerText
from dllm.serve.tickets import End, Listener

MOST_VIEWS = 8


class Waker:
    """An event of an event loop that other threads may set."""

    def __init__(self) -> None:
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()

    def __call__(self) -> None:
        """Set the event, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:  # the loop is closed: nobody waits
            pass

    async def wait(self) -> None:
        """Wait until the event is set, and clear it."""
        await self._event.wait()
        self._event.clear()


class Answer(Listener):
    """One row's news: always its last final tokens, at most :data:`MOST_VIEWS` views, and its end.

    A slow reader loses views, the oldest first, but no text: final tokens hold those before.

    Args:
        text: decodes it.
        span: columns of the answer; final tokens begin at `first`.
        first: the row's first generated column.
        wake: called where there is news for a reader.
        streams: whether more final tokens are news.
        watches: whether each step is.
        on_drop: called for each view that is lost.
    """

    def __init__(
        self,
        text: AnswerText,
        span: slice,
        first: int,
        wake: Callable[[], None],
        *,
        streams: bool = False,
        watches: bool = False,
        on_drop: Callable[[], object] = lambda: None,
    ):
        self.text, self.span, self.streams, self.watches = text, span, streams, watches
        self.final: list[int] = []
        self.views: deque[RowView] = deque(maxlen=MOST_VIEWS)
        self.end: End | None = None
        self._final_span = slice(span.start - first, span.stop - first)
        self._wake, self._on_drop = wake, on_drop

    def on_final(self, tokens: list[int]) -> bool:
        """See :class:`Listener`."""
        self.final = tokens[self._final_span]
        if self.streams:
            self._wake()
        return self.text.is_over(self.final)

    def on_view(self, view: RowView) -> None:
        """See :class:`Listener`."""
        if len(self.views) == MOST_VIEWS:
            self._on_drop()
        self.views.append(view)
        self._wake()

    def on_end(self, end: End) -> None:
        """See :class:`Listener`."""
        self.end = end
        self._wake()

    def tokens(self) -> list[int]:
        """The tokens of the answer, once it has ended: all of a finished one, else those that are final."""
        return self.end.tokens[self.span] if self.end.kind == "finished" else self.final
