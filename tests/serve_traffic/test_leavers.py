"""Clients that leave, at any moment, and crowds of them: nothing of theirs stays, and others are answered."""

import asyncio
import gc
import os
import random
import re
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

import httpx

from tests.live_server import until
from tests.running_server import QUESTION, raw_request, received, running

pytestmark = pytest.mark.usefixtures("one_thread")

LONG = {"messages": QUESTION, "max_tokens": 128, "steps": 128, "temperature": 4.0, "seed": 1}


@pytest.fixture(scope="module")
def server():
    with running(rows=2, max_queue=8) as server:
        yield server


def runs(server):
    return server.gauges()["dllm_rows"]


def cancelled(server):
    text = server.client.get("/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("dllm_cancelled_total{"))


def left_in_bodies(server):
    """How many requests ended because their clients had left."""
    counts = re.findall(r'^dllm_requests_total{code="499".* (\S+)$', server.client.get("/metrics").text, re.MULTILINE)
    return sum(map(float, counts))


# what was sent before the client left
BEFORE_A_ROW = {
    "nothing": b"",
    "half a head": raw_request(LONG)[:40],
    "the head": raw_request(LONG).partition(b"\r\n\r\n")[0] + b"\r\n\r\n",
    "half a body": raw_request(LONG)[:-20],
}


@pytest.mark.parametrize("phase", BEFORE_A_ROW)
def test_before_there_is_a_row(server, phase, caplog):
    """It is no error of the server either."""
    before, told = cancelled(server), left_in_bodies(server)
    server.send(BEFORE_A_ROW[phase]).close()
    assert server.chat().status_code == 200
    if phase in ("the head", "half a body"):
        until(lambda: left_in_bodies(server) == told + 1)
    assert server.is_idle() and cancelled(server) == before
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("stream", [False, True])
def test_while_it_runs(server, stream):
    """Its row is gone one step later: far from all 128 steps run."""
    connection = server.send(raw_request(LONG | {"stream": stream}))
    until(lambda: runs(server) == 1)
    before = server.gauges()
    connection.close()
    until(server.is_idle)
    after = server.gauges()
    assert after["dllm_forwards_total"] < before["dllm_forwards_total"] + 64
    assert after["dllm_tokens_total"] == before["dllm_tokens_total"]


def test_after_the_first_chunk(server):
    connection = server.send(raw_request(LONG | {"stream": True, "denoise": True}))
    received(connection, b"diffusion_frame", 2)
    connection.close()
    until(server.is_idle)


def test_while_it_waits(server):
    """Two rows run; of two that wait, one leaves: it never runs, and the other one does."""
    running_ = [server.send(raw_request(LONG)) for _ in range(2)]
    until(lambda: runs(server) == 2)
    leaver, before = server.send(raw_request(LONG)), cancelled(server)
    until(lambda: server.gauges()["dllm_queue_depth"] == 1)
    leaver.close()
    until(lambda: server.gauges()["dllm_queue_depth"] == 0)
    assert runs(server) == 2 and cancelled(server) == before + 1
    for connection in running_:
        connection.close()
    until(server.is_idle)
    assert server.chat().status_code == 200


def test_all_rows_of_a_request_leave(server):
    connection = server.send(raw_request(LONG | {"n": 4}))
    until(lambda: server.gauges()["dllm_rows"] + server.gauges()["dllm_queue_depth"] == 4)
    connection.close()
    until(server.is_idle)


def test_a_connection_serves_the_next_request(server):
    """Requests one behind the other on a connection, the second one sent before the first one is answered."""
    body = {"messages": QUESTION, "max_tokens": 4, "steps": 1, "seed": 3}
    connection = server.send(raw_request(body) * 2)
    assert received(connection, b"chat.completion", 2).count(b"HTTP/1.1 200") == 2
    connection.close()
    until(server.is_idle)


def test_too_many_are_refused():
    """With a place for one row and two that wait, of thirty at once some are answered; the others hear 503, at once."""
    with running(rows=1, max_queue=2) as server:
        expected = server.chat(max_tokens=16, steps=16, temperature=4.0).json()["choices"][0]["message"]

        async def ask(client):
            body = dict(messages=QUESTION, max_tokens=16, steps=16, temperature=4.0, seed=3)
            return await client.post("/v1/chat/completions", json=body)

        async def all_at_once():
            base = f"http://127.0.0.1:{server.port}"
            async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=120) as client:
                return await asyncio.gather(*(ask(client) for _ in range(30)))

        responses = asyncio.run(all_at_once())
        codes = Counter(response.status_code for response in responses)
        assert set(codes) == {200, 503} and codes[200] >= 3
        for response in responses:
            if response.status_code == 200:
                assert response.json()["choices"][0]["message"] == expected
            else:
                assert response.json()["error"]["code"] == "queue_full" and int(response.headers["retry-after"]) >= 1
        until(server.is_idle)


async def burst(port, count, at_once, rng):
    """Ask so many times, `at_once` at a time; a tenth leave, at some moment. Returns the codes, "left" for those."""
    codes, places = Counter(), asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=300, limits=limits
    ) as client:

        async def ask(number):
            body = dict(messages=QUESTION, seed=number, temperature=4.0, stream=rng.random() < 0.5)
            body |= dict(max_tokens=rng.randint(2, 8), steps=rng.randint(1, 2))
            leaves, after = rng.random() < 0.1, rng.random() * 0.2
            async with places:
                request = asyncio.ensure_future(client.post("/v1/chat/completions", json=body))
                if leaves:
                    await asyncio.wait({request}, timeout=after)
                    if not request.done():
                        request.cancel()
                        codes["left"] += 1
                        return
                codes[(await request).status_code] += 1

        await asyncio.gather(*map(ask, range(count)))
    return codes


def resident_bytes():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def crowd(count, at_once, growth):
    """Ask `count` times after half as many: memory and threads stay, gauges come back to 0."""
    threads = threading.active_count()
    with running(rows=16, max_queue=2 * at_once) as server:
        rng = random.Random(4)
        asyncio.run(burst(server.port, count // 2, at_once, rng))
        until(server.is_idle)
        memory = resident_bytes()
        codes = asyncio.run(burst(server.port, count, at_once, rng))
        until(server.is_idle)
        assert set(codes) <= {200, "left"} and codes["left"] > 0 and sum(codes.values()) == count, codes
        assert threading.active_count() <= threads + 42  # the server, its engine, and a pool of at most 40
        assert resident_bytes() < memory + growth
        assert server.chat().status_code == 200


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_a_crowd_leaves_nothing():
    crowd(160, 32, 30 * 2**20)


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_ten_thousand_leave_nothing():
    crowd(10_000, 64, 50 * 2**20)


def test_health_is_quick_under_load(server):
    """The event loop computes nothing: while two rows run, a probe is answered in a fraction of a step's time."""
    connections = [server.send(raw_request(LONG)) for _ in range(2)]
    until(lambda: runs(server) == 2)
    waits = []
    for _ in range(20):
        began = time.monotonic()
        assert server.client.get("/health/live").status_code == 200
        waits.append(time.monotonic() - began)
    for connection in connections:
        connection.close()
    assert sorted(waits)[10] < 0.5
    until(server.is_idle)
