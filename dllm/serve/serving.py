"""A request's way through the server: read, checked, queued, waited for, and given up where its client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dllm.serve.answers import Waker
from dllm.serve.batcher import Batcher, Closing, QueueFull
from dllm.serve.bodies import ChatBody, CompletionBody, parse
from dllm.serve.engine import Engine
from dllm.serve.errors import ApiError, overloaded
from dllm.serve.metrics import Metrics
from dllm.serve.orders import Order, order_of
from dllm.serve.settings import Settings
from dllm.serve.shapes import Outcome, outcome_of, response

_log = logging.getLogger("dllm.serve")


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
        """
        began, key = time.monotonic(), request.state.key
        deadline = began + self.settings.timeout
        raw, waker = await self.body(request), Waker()
        self._check_open()
        self._take(key)
        try:
            order = await run_in_threadpool(self._order, kind, raw, waker, key)
            self._submit(order)
        except BaseException:
            self._in_flight[key] -= 1
            raise
        with self._until_over(order, key):
            await self._ended(order, waker, request, deadline)
            outcomes, body = await run_in_threadpool(_finished, order)
        self._count(order, outcomes, began)
        return JSONResponse(body, headers={"x-request-id": order.id})

    async def body(self, request: Request) -> bytes:
        """The bytes of a body.

        Raises:
            ApiError: it does not come in time.
        """
        try:
            return await asyncio.wait_for(request.body(), self.settings.body_timeout)
        except asyncio.TimeoutError:
            message = f"the body must come within {self.settings.body_timeout:g} s"
            raise ApiError(408, message, code="body_timeout", headers={"Connection": "close"}) from None

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

    @contextlib.contextmanager
    def _until_over(self, order: Order, key: str) -> Iterator[None]:
        """Give the rows of an order up where its body is left before they have ended."""
        why = "disconnect"
        try:
            yield
        except ApiError as error:
            why = "timeout" if error.status == 504 else "error"
            raise
        finally:
            self._in_flight[key] -= 1
            if not self._in_flight[key]:
                del self._in_flight[key]
            if left := [choice.ticket for choice in order.choices if choice.answer.end is None]:
                self.batcher.cancel(left)
                self.metrics.cancelled.labels(why).inc(len(left))
                _log.info("%s given up: %s", order.id, why)

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

    def _count(self, order: Order, outcomes: Sequence[Outcome], began: float) -> None:
        """Count an order that has come to its end, and log its numbers."""
        seconds = time.monotonic() - began
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


def _finished(order: Order) -> tuple[list[Outcome], dict[str, Any]]:
    outcomes = [outcome_of(choice) for choice in order.choices]
    if not any(choice.answer.end.began for choice in order.choices):
        raise overloaded("the server is shutting down", "shutting_down")
    return outcomes, response(order, outcomes)


async def _disconnected(request: Request) -> None:
    """Wait until the client has closed its connection. The body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
