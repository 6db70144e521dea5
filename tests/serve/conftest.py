"""One server for the tests that only ask it, and a gated one for those that disturb it."""

import importlib.util

import pytest

# FastAPI has left Python 3.10
if importlib.util.find_spec("fastapi") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from dllm.demo.shipped import load_shipped
    from tests import live_server

    @pytest.fixture(scope="session")
    def server():
        with live_server.served(live_server.engine_of()) as found:
            yield found

    @pytest.fixture
    def gate():
        model, tokenizer = load_shipped()
        gate = live_server.Gate(model)
        gate.model, gate.tokenizer = model, tokenizer
        yield gate
        gate.open()
