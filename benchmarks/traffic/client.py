"""A client of OpenAI's chat API on this machine: requests at given moments, or by so many clients in turn."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from urllib.parse import urlsplit

import httpx

from benchmarks.traffic.outcome import Outcome
from benchmarks.traffic.requests import Request

TIMEOUT = 120.0  # s without a byte
Run = Callable[[httpx.AsyncClient, float], Awaitable[list[Outcome]]]


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
        limit: seconds that all may take.

    Raises:
        OSError: the server does not list a model, or all took longer than the limit.
    """

    async def run(client: httpx.AsyncClient, start: float) -> list[Outcome]:
        async def send(request: Request, arrival: float) -> Outcome:
            await asyncio.sleep(max(0.0, start + arrival - time.perf_counter()))
            return await _ask(client, target, request, start, arrival)

        return await asyncio.gather(*map(send, requests, arrivals))

    return asyncio.run(_with_client(target, run, limit))


def ask_in_turn(target: Target, requests: Sequence[Request], clients: int, limit: float) -> list[Outcome]:
    """Let so many clients ask: each sends the next request once its last one is answered.

    Raises:
        ValueError: there is no client.
        OSError: the server does not list a model, or all took longer than `limit`, s.
    """
    if clients < 1:
        raise ValueError(f"clients must be at least 1, got {clients}")

    async def run(client: httpx.AsyncClient, start: float) -> list[Outcome]:
        left, outcomes = iter(requests), []

        async def work() -> None:
            for request in left:
                arrival = time.perf_counter() - start
                outcomes.append(await _ask(client, target, request, start, arrival))

        await asyncio.gather(*(work() for _ in range(clients)))
        return outcomes

    return asyncio.run(_with_client(target, run, limit))


async def _with_client(target: Target, run: Run, limit: float) -> list[Outcome]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    common = dict(base_url=target.url, headers=target.headers, trust_env=False, timeout=TIMEOUT, limits=limits)
    async with httpx.AsyncClient(**common) as client:
        if target.model is None:
            target.model = await _first_model(client, target.url)
        try:
            return await asyncio.wait_for(run(client, time.perf_counter()), limit)
        except asyncio.TimeoutError:
            raise OSError(f"{target.url} took longer than the limit of {limit:g} s") from None


async def _first_model(client: httpx.AsyncClient, url: str) -> str:
    try:
        listed = (await client.get("/v1/models")).raise_for_status().json()
        return listed["data"][0]["id"]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise OSError(f"{url} lists no model: {type(error).__name__}: {error}") from error


async def _ask(client: httpx.AsyncClient, target: Target, request: Request, start: float, arrival: float) -> Outcome:
    """Send one request and read its stream."""
    outcome = Outcome(request.kind, request.new_tokens, arrival)
    try:
        async with client.stream("POST", "/v1/chat/completions", json=target.body(request)) as response:
            if response.status_code != 200:
                outcome.refused = str(response.status_code)
            else:
                await _read(response, outcome, start)
    except httpx.HTTPError as error:
        outcome.refused = type(error).__name__
    outcome.end = time.perf_counter() - start
    return outcome


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
