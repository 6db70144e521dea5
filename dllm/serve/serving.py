"""A request's way through the server: read, checked, queued, waited for, and given up where its client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

from anyio import CapacityLimiter, fail_after, to_thread
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from dllm.serve.answers import Waker
from dllm.serve.batcher import Batcher, Closing, QueueFull
from dllm.serve.bodies import ChatBody, CompletionBody, parse
from dllm.serve.engine import Engine
from dllm.serve.errors import ApiError, overloaded
from dllm.serve.metrics import Metrics
from dllm.serve.orders import Order, order_of
from dllm.serve.settings import Settings
from dllm.serve.shapes import Outcome, outcome_of, response
from dllm.serve.streams import PING, Stream, failed

LARGE = 2**15  # bytes; a body that takes 0.1 s and more to make tokens of

_log = logging.getLogger("dllm.serve")
Read = TypeVar("Read")


class Serving:
    """What routes need to answer with: the engine, its batcher, and the limits.

    Args:
        engine: what is served.
        settings: of the server.
    """

    def __init__(self, engine: Engine, settings: Settings):
        self.engine, self.settings, self.metrics = engine, settings, Metrics()
        self.batcher = Batcher(
            engine.sampler.model,
            rows=settings.rows,
            max_queue=settings.max_queue,
            width_multiple=engine.width_multiple,
            compile_body=engine.config.compile_body or False,
            on_step=self.metrics.step,
        )
        self.metrics.watch(self.batcher)
        self._in_flight: Counter[str] = Counter()

    async def answer(self, request: Request, kind: type[ChatBody] | type[CompletionBody]) -> Response:
        """The response to a request for an answer.

        Raises:
            ApiError: there is none.
            Left: its client has left.
        """
        began, key = time.monotonic(), request.state.key
        deadline = began + self.settings.timeout
        raw, waker = await self.body(request), Waker()
        self._check_open()
        self._take(key)
        try:
            order = await self.read(raw, deadline, self._order, kind, raw, waker, key)
            self._submit(order)
        except BaseException:
            self._give_back(key)
            raise
        flight = _Flight(self, order, key, began)
        headers = {"x-request-id": order.id}
        if order.body.stream:
            return _EventStream(flight, self._events(flight, waker, deadline), headers)
        with flight:
            await self._ended(order, waker, request, deadline)
            flight.outcomes, body = await run_in_threadpool(_finished, order)
        return JSONResponse(body, headers=headers)

    async def body(self, request: Request) -> bytes:
        """The bytes of a body.

        Raises:
            ApiError: it does not come in time.
            Left: its client leaves before its end.
        """
        try:
            return await asyncio.wait_for(request.body(), self.settings.body_timeout)
        except ClientDisconnect:
            raise Left from None
        except asyncio.TimeoutError:
            message = f"the body must come within {self.settings.body_timeout:g} s"
            raise ApiError(408, message, code="body_timeout", headers={"Connection": "close"}) from None

    async def read(self, raw: bytes, deadline: float, work: Callable[..., Read], *arguments: Any) -> Read:
        """What `work(*arguments)` makes of a body, in a thread.

        Large bodies wait for each other: however many come, half of the CPUs are left to the engine, and the threads
        of streams and of short requests to these.

        Raises:
            ApiError: the deadline has come; others are those of `work`.
        """
        limiter = self._large if len(raw) > LARGE else None
        try:
            with fail_after(deadline - time.monotonic()):  # a thread that has begun keeps its place to its end
                return await to_thread.run_sync(work, *arguments, limiter=limiter)
        except TimeoutError:
            raise self.timed_out() from None

    @cached_property
    def _large(self) -> CapacityLimiter:
        return CapacityLimiter(max(1, (os.cpu_count() or 1) // 2))

    def _check_open(self) -> None:
        if self.batcher.draining:
            raise overloaded("the server is shutting down", "shutting_down")

    def _take(self, key: str) -> None:
        most = self.settings.max_in_flight
        if most is not None and self._in_flight[key] >= most:
            message = f"a key may have {most} requests in flight, got one more"
            raise ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": "1"})
        self._in_flight[key] += 1

    def _order(self, kind: type[Any], raw: bytes, waker: Waker, key: str) -> Order:
        return order_of(
            self.engine,
            parse(kind, raw),
            wake=waker,
            key=key,
            most_rows=self.settings.max_queue,
            on_drop=self.metrics.dropped.inc,
        )

    def _submit(self, order: Order) -> None:
        try:
            self.batcher.submit_all(order.tickets)
        except QueueFull as error:
            raise overloaded(f"the server is busy: {error}", "queue_full") from None
        except Closing:
            raise overloaded("the server takes no more requests", "shutting_down") from None

    def _give_back(self, key: str) -> None:
        self._in_flight[key] -= 1
        if not self._in_flight[key]:
            del self._in_flight[key]

    async def _events(self, flight: _Flight, waker: Waker, deadline: float) -> AsyncIterator[bytes]:
        """The events of a stream."""
        stream, began = Stream(flight.order, self.engine.tokenizer), time.monotonic()
        if first := stream.begin():
            yield first
        quiet, has_text = began, False
        while not stream.over:
            until = min(deadline, quiet + self.settings.ping)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(waker.wait(), max(until - time.monotonic(), 0))
            events = await run_in_threadpool(stream.news)
            now = time.monotonic()
            if stream.has_text and not has_text:
                has_text = True
                self.metrics.first_text.observe(now - flight.began)
            if events or now >= quiet + self.settings.ping:
                quiet = now
                yield events or PING
            if now >= deadline and not stream.over:
                flight.why = "timeout"
                yield failed(self.timed_out())
                return
        flight.outcomes = stream.outcomes
        yield stream.end()

    async def _ended(self, order: Order, waker: Waker, request: Request, deadline: float) -> None:
        """Wait until all rows of an order have ended.

        Raises:
            ApiError: its time is over, or its client has left.
        """
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            while any(choice.answer.end is None for choice in order.choices):
                news = asyncio.ensure_future(waker.wait())
                try:
                    left = deadline - time.monotonic()
                    await asyncio.wait({news, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    news.cancel()
                if gone.done():
                    raise Left
                if time.monotonic() >= deadline:
                    raise self.timed_out()
        finally:
            gone.cancel()

    def timed_out(self) -> ApiError:
        """The error of a request whose time is over."""
        return ApiError(504, f"the request took longer than {self.settings.timeout:g} s", code="timeout")

    def land(self, flight: _Flight) -> None:
        """Count a request that is over, log its numbers, and give the rows up that have not ended."""
        self._give_back(flight.key)
        order = flight.order
        if left := [choice.ticket for choice in order.choices if choice.answer.end is None]:
            self.batcher.cancel(left)
            self.metrics.cancelled.labels(flight.why).inc(len(left))
            _log.info("%s given up with %d rows left: %s", order.id, len(left), flight.why)
        elif flight.outcomes is not None:
            self._count(order, flight.outcomes, time.monotonic() - flight.began)

    def _count(self, order: Order, outcomes: Sequence[Outcome], seconds: float) -> None:
        tokens = sum(outcome.count for outcome in outcomes)
        self.metrics.tokens.inc(tokens)
        self.metrics.request_seconds.observe(seconds)
        ends = [choice.answer.end for choice in order.choices]
        for end in ends:
            self.metrics.queue_seconds.observe(end.queued_seconds)
        _log.info(
            "%s %d rows, %d tokens for %d, %d forwards, %.3f s",
            *(order.id, len(ends), order.prompt_tokens, tokens, sum(end.forwards for end in ends), seconds),
        )


class Left(Exception):
    """The client has closed its connection."""


class _Flight:
    """Context manager: a request whose rows are on their way; rows that are left at its end are given up."""

    def __init__(self, serving: Serving, order: Order, key: str, began: float):
        self._serving, self.order, self.key, self.began = serving, order, key, began
        self.why = "disconnect"
        self.outcomes: Sequence[Outcome] | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ApiError):
            self.why = "timeout" if error.status == 504 else "error"
        self._serving.land(self)


class _EventStream(StreamingResponse):
    """Events for one client. Whatever ends the response, the rows do not outlive it."""

    def __init__(self, flight: _Flight, events: AsyncIterator[bytes], headers: dict[str, str]):
        # proxies must pass events on as they come
        headers = headers | {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._flight = flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        # under later versions of the protocol Starlette waits for a write to fail, instead of listening for the client
        scope = scope | {"asgi": scope.get("asgi", {}) | {"spec_version": "2.3"}}
        with self._flight:
            await super().__call__(scope, receive, send)


def _finished(order: Order) -> tuple[list[Outcome], dict[str, Any]]:
    outcomes = [outcome_of(choice) for choice in order.choices]
    if not any(choice.answer.end.began for choice in order.choices):
        raise overloaded("the server is shutting down", "shutting_down")
    return outcomes, response(order, outcomes)


async def _disconnected(request: Request) -> None:
    """Wait until the client has closed its connection. The body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
