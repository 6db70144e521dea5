"""A server of the bundled model in this process, and models that do as a test says."""

from __future__ import annotations

import contextlib
import threading
import time
from types import SimpleNamespace

import uvicorn

from dllm.core.samplers import MDLMSampler, MDLMSamplerConfig
from dllm.demo.shipped import load_shipped
from dllm.serve.api import create_app
from dllm.serve.engine import Engine
from dllm.serve.process import config_of
from dllm.serve.settings import Settings

NAME = "dllm-shipped"
SHORT = dict(max_new_tokens=16, steps=8, block_size=None, stop_at_eos=True)


def engine_of(model=None, tokenizer=None, **options):
    """The bundled model, or another one, with short answers."""
    if model is None:
        model, tokenizer = load_shipped()
    return Engine(MDLMSampler(model, tokenizer), MDLMSamplerConfig(**SHORT), name=NAME, **options)


@contextlib.contextmanager
def served(engine, **settings):
    """Serves while its body runs; yields the address, the batcher and the metrics."""
    engine.warm_up()
    settings = Settings(**{"grace": 5.0} | settings)
    app = create_app(engine, settings)
    config = config_of(app, settings)
    config.port = 0
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        serving = app.state.serving
        yield SimpleNamespace(
            url=f"http://127.0.0.1:{port}", port=port, batcher=serving.batcher, metrics=serving.metrics
        )
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def until(true, seconds=60):
    """Waits until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it has not become true"
        time.sleep(0.005)


class Gate:
    """Stands before the forwards of a model: closed, they wait; `fault` is raised by the next one, once."""

    def __init__(self, model):
        self._open, self.fault, self.entered = threading.Event(), None, threading.Event()
        self.open()
        model.get_input_embeddings().register_forward_pre_hook(self._pass)

    def open(self):
        self._open.set()

    def close(self):
        """Returns at once; whoever comes after it waits."""
        self.entered.clear()
        self._open.clear()

    def _pass(self, *_):
        self.entered.set()
        assert self._open.wait(60)
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault
