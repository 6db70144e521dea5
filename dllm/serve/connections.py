"""Connections that are closed where the client does not get on: half a request's head, or a response nobody takes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from dllm.serve.errors import ApiError

MAX_HEAD = 2**14  # bytes of a request's headers
SPARED = 1.0  # seconds for which a new connection is not closed for the sake of others


@dataclass(frozen=True, slots=True, eq=False)
class Patience:
    """How long connections of one server may keep it waiting.

    head: seconds from the first byte of a request to the end of its headers, and from the connection to its first one.
    reading: seconds for which a client may take nothing of its response.
    waiting: connections that wait for their client, at most; beyond that the one that has waited longest is closed.
    on_close: called with the reason, one of :data:`dllm.serve.metrics.CLOSED`, where a connection is closed.
    queue: the connections that wait, and since when, the longest first.
    """

    head: float
    reading: float
    waiting: int
    on_close: Callable[[str], object]
    queue: dict[Connection, float] = field(default_factory=dict)


class Connection(H11Protocol):
    """A connection of uvicorn's, with time limits.

    uvicorn ends a connection that is idle between two requests. It waits without end for the rest of a head, and for a
    client that takes no more of its response. The time of a body is that of the application.

    Args:
        patience: of the server.
        options: as uvicorn gives them.
    """

    def __init__(self, *, patience: Patience, **options: Any):
        super().__init__(**options)
        self._patience = patience
        self._head: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._note_turn(begun=True)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request, however few."""
        super().data_received(data)
        self._note_turn(begun=True)

    def on_response_complete(self) -> None:
        """Begin to wait for another request, for which uvicorn has a time of its own until its first byte."""
        super().on_response_complete()
        self._note_turn(begun=False)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self._patience.queue.pop(self, None)
        self._head, self._reader = _stopped(self._head), _stopped(self._reader)

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not read."""
        super().pause_writing()
        self._reader = self.loop.call_later(self._patience.reading, self._close, "reader")

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._reader = _stopped(self._reader)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the shape of all errors, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            rule = f"the request must be valid HTTP/1.1 with at most {MAX_HEAD} bytes of headers"
            error = ApiError(400, rule, code="invalid_http")
            content = json.dumps(error.body()).encode()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(content))),
                ("Connection", "close"),
            ]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def _note_turn(self, *, begun: bool) -> None:
        """Note whose turn it is, the client's or the server's.

        Args:
            begun: something of the next request is there, or nothing was ever asked.
        """
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering:
            self._head = _stopped(self._head)
        elif begun and self._head is None and not self.transport.is_closing():
            self._head = self.loop.call_later(self._patience.head, self._close, "head")
        queue = self._patience.queue
        if answering and not self.cycle.more_body:
            queue.pop(self, None)
        elif self not in queue:
            queue[self] = self.loop.time()
            self._close_oldest()

    def _close_oldest(self) -> None:
        """Keep the number of connections that wait, so that there is always one for a client that asks."""
        queue = self._patience.queue
        if len(queue) > self._patience.waiting:
            oldest, since = next(iter(queue.items()))
            if self.loop.time() - since > SPARED:
                oldest._close("crowd")

    def _close(self, why: str) -> None:
        if not self.transport.is_closing():
            self._patience.queue.pop(self, None)
            self._patience.on_close(why)
            self.transport.abort()  # close would wait until the client has taken what was written


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
