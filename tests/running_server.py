"""`dllm serve` in a thread of this process, so that tests may look into it and make its model fail."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import uvicorn
from dllm.serve.api import create_app
from dllm.serve.engine import Engine
from dllm.serve.settings import Settings

from dllm.core.samplers import MDLMSampler, MDLMSamplerConfig
from dllm.demo.shipped import load_shipped

QUESTION = [{"role": "user", "content": "What is 3 plus 4?"}]
WAIT = 120.0  # s, on a machine that others use


class RunningServer:
    """A server that runs.

    engine: what it serves. serving: its batcher and metrics. port: of 127.0.0.1. client: asks it.
    """

    def __init__(self, engine: Engine, serving: object, port: int):
        self.engine, self.serving, self.port = engine, serving, port
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


def raw_request(body: dict, *, path: str = "/v1/chat/completions", length: int | None = None) -> bytes:
    """A request as it goes over the line. `length`: what its head says of the body; None: the truth."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(content) if length is None else length}",
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


def eventually(holds: Callable[[], bool], what: str = "it to hold", seconds: float = WAIT) -> None:
    """Wait until something holds.

    Raises:
        AssertionError: it does not, in that time.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.01)


def shipped_engine() -> Engine:
    """The shipped model with a model of its own, which a test may break."""
    return Engine(MDLMSampler(*load_shipped()), MDLMSamplerConfig(max_new_tokens=64), name="shipped")


@contextlib.contextmanager
def running(engine: Engine | None = None, **settings: object) -> Iterator[RunningServer]:
    """Context manager: a server on a free port of this machine."""
    engine = shipped_engine() if engine is None else engine
    app = create_app(engine, Settings(**settings))
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started or not thread.is_alive(), "the server to start")
    own = RunningServer(engine, app.state.serving, server.servers[0].sockets[0].getsockname()[1])
    try:
        yield own
    finally:
        own.client.close()
        server.should_exit = True
        thread.join(WAIT)
        assert not thread.is_alive()
