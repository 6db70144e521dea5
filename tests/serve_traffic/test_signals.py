"""TERM in each state of a server: it always ends, soon, and whoever was being answered hears the end."""

import json
import os
import signal
import threading
import time

import pytest

pytest.importorskip("fastapi")

import httpx

from tests import programs
from tests.live_server import until
from tests.running_server import QUESTION

BODY = {"messages": QUESTION, "max_tokens": 24, "steps": 24, "seed": 3}
LONG = {"messages": QUESTION, "max_tokens": 128, "steps": 128, "n": 8, "temperature": 4.0}
SOON = 60.0  # s, on a machine that others use; the default grace is 20


@pytest.fixture
def start(tmp_path):
    """Starts a server in a process of its own; returns it and a client of it."""
    started = []

    def start(*options):
        streams = [tmp_path / name for name in ("in", "out", "err")]
        for path in streams:
            path.touch()
        words = ["-m", "dllm.cli", "serve", "--port", "0", *options]
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DLLM_API_KEY": ""}
        process = programs.start(words, environment=environment, streams=streams)
        started.append(process)
        until(lambda: "\n" in streams[1].read_text() or not process.is_alive(), 120)
        assert process.is_alive(), streams[2].read_text()
        return process, httpx.Client(base_url=streams[1].read_text().split()[-1], trust_env=False, timeout=120)

    yield start
    for process in started:
        process.kill()
        process.join()
    assert "Traceback" not in (tmp_path / "err").read_text()


def ended(process, began):
    """Check that a process has ended by its signal, and soon."""
    process.join(SOON)
    assert process.exitcode == -signal.SIGTERM, process.exitcode
    return time.monotonic() - began


def test_idle(start):
    process, client = start()
    assert client.get("/health/ready").status_code == 200  # the connection stays open, and must not hold it up
    began = time.monotonic()
    process.terminate()
    assert ended(process, began) < 15


def test_interrupted(start, tmp_path):
    process, _ = start()
    os.kill(process.pid, signal.SIGINT)
    process.join(SOON)
    assert process.exitcode == 130 and (tmp_path / "err").read_text() == "dllm serve: interrupted\n"


def test_busy_and_streaming(start):
    """What is being answered is answered in full; a request that comes after the signal is not."""
    process, client = start()
    expected = client.post("/v1/chat/completions", json=BODY).json()["choices"][0]["message"]
    found = {}

    def plain():
        found["plain"] = client.post("/v1/chat/completions", json=BODY)

    thread = threading.Thread(target=plain)
    with client.stream("POST", "/v1/chat/completions", json=BODY | {"stream": True, "denoise": True}) as response:
        lines = response.iter_lines()
        next(line for line in lines if "diffusion_frame" in line)
        thread.start()
        until(lambda: "dllm_rows 2.0" in client.get("/metrics").text, SOON)
        began = time.monotonic()
        process.terminate()
        events = [line[len("data: ") :] for line in lines if line.startswith("data: ")]
    thread.join(SOON)
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]] in (
        ["stop"],
        ["length"],
    )
    assert "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"]) in expected["content"]
    assert found["plain"].status_code == 200 and found["plain"].json()["choices"][0]["message"] == expected
    ended(process, began)
    with pytest.raises(httpx.ConnectError):
        client.get("/health/live")


def test_twice(start):
    """The second signal waits for nobody, although the first one gives them 20 seconds."""
    process, client = start("--rows", "1")
    with client.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True, "denoise": True}) as response:
        lines = response.iter_lines()  # kept: where it is collected, the connection closes
        next(line for line in lines if "diffusion_frame" in line)
        process.terminate()
        time.sleep(0.5)
        assert process.is_alive()
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        assert '"abort"' in "".join(lines)
        assert ended(process, began) < 15
