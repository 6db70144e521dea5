"""The process of a server: uvicorn with its own handlers of signals, and requests that may finish after one."""

from __future__ import annotations

import gc
import logging
import math
import socket
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from dllm.serve.api import create_app
from dllm.serve.batcher import Batcher
from dllm.serve.connections import MAX_HEAD, Connection, Patience
from dllm.serve.engine import Engine
from dllm.serve.settings import Settings

KEEP_ALIVE = 75  # seconds; longer than balancers keep idle connections
LEEWAY = 5  # seconds after the grace in which responses that were cut short are written

_log = logging.getLogger("dllm.serve")


def serve(engine: Engine, settings: Settings, address: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT comes, which uvicorn raises once more at the end.

    A signal closes the address at once. Requests that are there may finish for `settings.grace` seconds; then they end
    with what they have, "abort" as their reason. At a second signal they end so at once.

    Args:
        engine: what is served.
        settings: of the server.
        address: a bound socket.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _log.setLevel(logging.INFO)
    if engine.one_at_a_time:
        _log.info("this sampler keeps a KV cache: one row runs at a time, whatever --rows says")
    app = create_app(engine, settings)
    config = config_of(app, settings)
    gc.collect()
    gc.freeze()  # what is loaded stays; a collection that looks at all of it stops every request for 0.3 s and more
    server = _Server(config, app.state.serving.batcher, settings.grace, engine.name)
    server.run(sockets=[address])


def config_of(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn is to run an application of :func:`dllm.serve.api.create_app`."""
    patience = Patience(
        head=settings.head_timeout,
        reading=settings.timeout,
        waiting=settings.max_waiting,
        on_close=app.state.serving.metrics.close,
    )
    return uvicorn.Config(
        app,
        http=partial(Connection, patience=patience),
        h11_max_incomplete_event_size=MAX_HEAD,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(settings.grace) + LEEWAY,
    )


class _Server(uvicorn.Server):
    """uvicorn's server, which tells when it is ready, and tells the batcher when it ends."""

    def __init__(self, config: uvicorn.Config, batcher: Batcher, grace: float, name: str):
        super().__init__(config)
        self._batcher, self._grace, self._name = batcher, grace, name

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        for bound in sockets or ():  # inherited by connections: those that linger must not stop the next server
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await super().startup(sockets)
        if self.started:
            host, port = sockets[0].getsockname()[:2]
            print(f"serving {self._name} at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second time, wait for no request."""
        if self.should_exit:
            self._batcher.drain(0)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests finish, and end."""
        self._batcher.drain(self._grace)
        await super().shutdown(sockets)
