"""A client of OpenAI's chat API on this machine: requests at given moments, or by so many clients in turn."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from urllib.parse import urlsplit

import httpx

from benchmarks.traffic.outcome import Outcome
from benchmarks.traffic.requests import Request

TIMEOUT = 120.0  # s without a byte
Run = Callable[[httpx.AsyncClient, float], Awaitable[None]]


class Target:
    """A server and how it is asked.

    Args:
        url: such as http://127.0.0.1:8000; its API is below /v1. Only this machine is asked.
        model: the name to ask for; None: the first one that the server lists.
        key: of the API, if there is one.
        temperature: of the requests.

    Raises:
        ValueError: the URL is no http URL of this machine.
    """

    def __init__(self, url: str, model: str | None = None, key: str | None = None, temperature: float = 0.0):
        self.url, self.model, self.temperature = checked_url(url), model, temperature
        self.headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    def body(self, request: Request) -> dict[str, object]:
        """The body of a request."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": request.text}],
            "max_tokens": request.new_tokens,
            "temperature": self.temperature,
            "seed": request.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def checked_url(url: str) -> str:
    """A URL of this machine, without a slash at its end.

    Raises:
        ValueError: it is another one.

    Example:
        >>> checked_url("http://127.0.0.1:8000/")
        'http://127.0.0.1:8000'
    """
    parts = urlsplit(url)
    try:
        local = parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        local = False
    if parts.scheme != "http" or not local or parts.path.strip("/"):
        raise ValueError(f"a server must be given as http://127.0.0.1:PORT, got {url}")
    return url.rstrip("/")


def ask_at(target: Target, requests: Sequence[Request], arrivals: Sequence[float], limit: float) -> list[Outcome]:
    """Send each request at its moment, whatever has become of the others.

    Args:
        target: the server.
        requests: what to ask.
        arrivals: when, s from the start.
        limit: seconds after which requests that have no answer count as refused, by "limit".

    Raises:
        OSError: the server does not list a model.
    """
    outcomes = [_outcome(request, arrival) for request, arrival in zip(requests, arrivals, strict=True)]

    async def run(client: httpx.AsyncClient, start: float) -> None:
        async def send(request: Request, outcome: Outcome) -> None:
            await asyncio.sleep(max(0.0, start + outcome.arrival - time.perf_counter()))
            await _ask(client, target, request, start, outcome)

        await asyncio.gather(*map(send, requests, outcomes))

    return asyncio.run(_with_client(target, run, outcomes, limit))


def ask_in_turn(target: Target, requests: Sequence[Request], clients: int, limit: float) -> list[Outcome]:
    """Let so many clients ask: each sends the next request once its last one is answered, within `limit` seconds.

    Returns:
        The outcomes of the requests that were sent; those without an answer then are refused, by "limit".

    Raises:
        ValueError: there is no client.
        OSError: the server does not list a model.
    """
    if clients < 1:
        raise ValueError(f"clients must be at least 1, got {clients}")
    outcomes: list[Outcome] = []

    async def run(client: httpx.AsyncClient, start: float) -> None:
        left = iter(requests)

        async def work() -> None:
            for request in left:
                outcomes.append(outcome := _outcome(request, time.perf_counter() - start))
                await _ask(client, target, request, start, outcome)

        await asyncio.gather(*(work() for _ in range(clients)))

    return asyncio.run(_with_client(target, run, outcomes, limit))


def _outcome(request: Request, arrival: float) -> Outcome:
    return Outcome(request.kind, request.new_tokens, arrival)


async def _with_client(target: Target, run: Run, outcomes: list[Outcome], limit: float) -> list[Outcome]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    common = dict(base_url=target.url, headers=target.headers, trust_env=False, timeout=TIMEOUT, limits=limits)
    async with httpx.AsyncClient(**common) as client:
        if target.model is None:
            target.model = await _first_model(client, target.url)
        start = time.perf_counter()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(run(client, start), limit)
        for outcome in outcomes:
            if outcome.end is None:
                outcome.refused, outcome.end = "limit", time.perf_counter() - start
        return outcomes


async def _first_model(client: httpx.AsyncClient, url: str) -> str:
    try:
        listed = (await client.get("/v1/models")).raise_for_status().json()
        return listed["data"][0]["id"]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise OSError(f"{url} lists no model: {type(error).__name__}: {error}") from error


async def _ask(client: httpx.AsyncClient, target: Target, request: Request, start: float, outcome: Outcome) -> None:
    """Send one request, read its stream, and note what comes of it."""
    try:
        async with client.stream("POST", "/v1/chat/completions", json=target.body(request)) as response:
            if response.status_code != 200:
                outcome.refused = str(response.status_code)
            else:
                await _read(response, outcome, start)
    except httpx.HTTPError as error:
        outcome.refused = type(error).__name__
    outcome.end = time.perf_counter() - start


async def _read(response: httpx.Response, outcome: Outcome, start: float) -> None:
    """Note the first text, tokens, and an error that comes after the headers."""
    ended = False
    async for event in events(response):
        if event == "[DONE]":
            ended = True
            continue
        chunk = json.loads(event)
        if "error" in chunk:
            outcome.refused = "error"
        if chunk.get("usage"):
            outcome.text_tokens = chunk["usage"].get("completion_tokens")
        for choice in chunk.get("choices", ()):
            if outcome.first is None and choice["delta"].get("content"):
                outcome.first = time.perf_counter() - start
    if not ended and outcome.refused is None:
        outcome.refused = "cut off"


async def events(response: httpx.Response) -> AsyncIterator[str]:
    """The data of a stream's events; comments and other fields are left out."""
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            yield line[len("data:") :].strip()
