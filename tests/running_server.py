"""What tests of traffic do to a server: whole requests and parts of them, and a look at its gauges."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator

import httpx

from dllm.core.samplers import MDLMSampler, MDLMSamplerConfig
from dllm.demo.shipped import load_shipped
from dllm.serve.engine import Engine
from tests.live_server import served

QUESTION = [{"role": "user", "content": "What is 3 plus 4?"}]
WAIT = 120.0  # s, on a machine that others use


class RunningServer:
    """A server that runs.

    engine: what it serves. port: of 127.0.0.1. client: asks it.
    """

    def __init__(self, engine: Engine, port: int):
        self.engine, self.port = engine, port
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=WAIT)

    def chat(self, **fields: object) -> httpx.Response:
        """A chat request; a short one, unless `fields` say otherwise."""
        body = dict(messages=QUESTION, max_tokens=8, steps=4, seed=3) | fields
        return self.client.post("/v1/chat/completions", json=body)

    def complete(self, **fields: object) -> httpx.Response:
        """A completion, the same way."""
        body = dict(prompt=[5, 6, 7], max_tokens=8, steps=4, seed=3) | fields
        return self.client.post("/v1/completions", json=body)

    def post(self, content: bytes, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
        """A body as it is."""
        return self.client.post(path, content=content, headers={"Content-Type": "application/json"} | headers)

    def send(self, content: bytes) -> socket.socket:
        """A connection over which these bytes, and nothing else, were sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)
        connection.sendall(content)
        return connection

    def gauges(self) -> dict[str, float]:
        """What /metrics says, without labels."""
        text = self.client.get("/metrics").text
        return {name: float(value) for name, value in re.findall(r"^(dllm_\w+) (\S+)$", text, re.MULTILINE)}

    def is_idle(self) -> bool:
        """Whether no row waits or runs."""
        gauges = self.gauges()
        return gauges["dllm_rows"] == gauges["dllm_queue_depth"] == 0


def raw_request(body: dict) -> bytes:
    """A chat request as it goes over the line."""
    content = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    )
    return "\r\n".join([*head, "", ""]).encode() + content


def received(connection: socket.socket, part: bytes, count: int = 1) -> bytes:
    """What comes over a connection until it holds `part` so many times.

    Raises:
        AssertionError: the connection ends before.
    """
    found = b""
    while found.count(part) < count:
        more = connection.recv(65536)
        assert more, f"the connection ended with {found[-500:]!r}"
        found += more
    return found


@contextlib.contextmanager
def running(**settings: object) -> Iterator[RunningServer]:
    """Context manager: the shipped model on a free port of this machine, with a model of its own that may be broken."""
    engine = Engine(MDLMSampler(*load_shipped()), MDLMSamplerConfig(max_new_tokens=64), name="shipped")
    with served(engine, **settings) as own:
        server = RunningServer(engine, own.port)
        with server.client:
            yield server
