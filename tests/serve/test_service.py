"""A server that is busy, left, slow, full, broken or ending. Its model waits at a gate where a test says so."""

import asyncio
import itertools
import json
import os
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from queue import SimpleQueue
from types import SimpleNamespace

import httpx
import openai
import pytest

from dllm.core.samplers import BD3LMSampler, BD3LMSamplerConfig, FastDLLMSampler, FastDLLMSamplerConfig
from dllm.demo.shipped import load_shipped
from dllm.fast.attention import PACKED, attention_of
from dllm.models import with_packed_attention
from dllm.serve import serving
from dllm.serve.answers import Answer, Waker
from dllm.serve.batcher import Batcher
from dllm.serve.engine import Engine
from dllm.serve.text import AnswerText
from dllm.serve.tickets import Ticket, Work
from tests.causal_models import EOS, causal_model
from tests.live_server import NAME, engine_of, served, until
from tests.models import MASK_ID

CHAT = "/v1/chat/completions"
TOKENIZER = load_shipped()[1]
BODY = {"messages": [{"role": "user", "content": "What is 12 * 4?"}], "seed": 1, "temperature": 4.0}


def ask(server, timeout=60, **more):
    return httpx.post(server.url + CHAT, json=BODY | more, timeout=timeout)


def events(response):
    """The data of a stream's events, as they come."""
    for line in response.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line[6:])


def text_of(answer):
    return [choice["message"]["content"] for choice in answer.json()["choices"]]


def metric(server, name):
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[-1])


def is_empty(server):
    return server.batcher.running == 0 == server.batcher.queued


def test_clients_that_leave_cost_nothing_more(gate):
    """Plain and streamed, running and waiting: after the step that runs, their rows are gone; others are as alone."""
    with served(engine_of(gate.model, gate.tokenizer), rows=2) as server, ThreadPoolExecutor() as pool:
        alone = text_of(ask(server))
        gate.close()
        staying = pool.submit(ask, server)
        until(gate.entered.is_set)
        with httpx.Client() as leaver:
            with leaver.stream("POST", server.url + CHAT, json=BODY | {"stream": True}) as response:
                lines = response.iter_lines()  # kept: where it is collected, the connection closes
                next(lines)
                with pytest.raises(httpx.ReadTimeout):
                    ask(server, timeout=0.2)
                until(lambda: server.batcher.queued == 1)  # the streamed one
        until(lambda: metric(server, 'dllm_cancelled_total{why="disconnect"}') == 2)
        assert server.batcher.queued == 0
        gate.open()
        assert text_of(staying.result()) == alone
        until(lambda: is_empty(server))
        gate.close()
        with pytest.raises(httpx.ReadTimeout):
            ask(server, timeout=0.2, n=2)
        until(lambda: metric(server, 'dllm_cancelled_total{why="disconnect"}') == 4)
        before = metric(server, "dllm_forwards_total")
        gate.open()
        until(lambda: is_empty(server))
        assert metric(server, "dllm_forwards_total") == before + 1


def test_a_full_queue_a_key_with_too_much_and_the_loop_under_load(gate):
    with served(engine_of(gate.model, gate.tokenizer), rows=1, max_queue=2, max_in_flight=3) as server:
        with ThreadPoolExecutor() as pool:
            gate.close()
            running = pool.submit(ask, server)
            until(gate.entered.is_set)
            full = pool.submit(ask, server, n=2)
            until(lambda: server.batcher.queued == 2)
            busy = ask(server)
            assert (busy.status_code, busy.headers["Retry-After"]) == (503, "1")
            assert busy.json()["error"]["code"] == "queue_full"
            assert httpx.get(f"{server.url}/health/ready").status_code == 200
            assert metric(server, "dllm_queue_depth") == 2 and metric(server, "dllm_rows") == 1
            gate.open()
            assert running.result().is_success and full.result().is_success
            gate.close()
            three = [pool.submit(ask, server, max_tokens=1) for _ in range(3)]
            until(lambda: server.batcher.queued + server.batcher.running == 3)
            many = ask(server)
            assert (many.status_code, many.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            gate.open()
            assert all(one.result().is_success for one in three)


def test_the_official_client_tries_again_when_the_server_is_busy(gate):
    def call():
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=5) as client:
            return client.chat.completions.create(model=NAME, messages=BODY["messages"], max_tokens=1)

    with served(engine_of(gate.model, gate.tokenizer), rows=1, max_queue=1) as server, ThreadPoolExecutor() as pool:
        gate.close()
        running = pool.submit(ask, server)
        until(gate.entered.is_set)
        waiting = pool.submit(ask, server)
        until(lambda: server.batcher.queued == 1)
        patient = pool.submit(call)
        until(lambda: 'code="503"' in httpx.get(f"{server.url}/metrics").text)
        gate.open()
        assert running.result().is_success and waiting.result().is_success
        assert patient.result().choices[0].finish_reason in ("stop", "length")


def test_time_that_is_over(gate):
    with served(engine_of(gate.model, gate.tokenizer), timeout=0.4, ping=0.1) as server:
        gate.close()
        late = ask(server)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        with httpx.stream("POST", server.url + CHAT, json=BODY | {"stream": True}, timeout=60) as response:
            lines = [line for line in response.iter_lines() if line]
        assert lines[-1] == "data: [DONE]" and json.loads(lines[-2][6:])["error"]["code"] == "timeout"
        assert ": ping" in lines
        gate.open()
        until(lambda: is_empty(server))
        assert metric(server, 'dllm_cancelled_total{why="timeout"}') == 2


def test_a_body_that_does_not_come(server):
    """A slow client costs nobody else anything, and is told."""
    with served(engine_of(), body_timeout=0.3) as own:
        with socket.create_connection(("127.0.0.1", own.port), timeout=60) as slow:
            head = [f"POST {CHAT} HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 99"]
            slow.sendall("\r\n".join([*head, "", "{"]).encode())
            assert slow.recv(4096).startswith(b"HTTP/1.1 408")


def test_a_step_that_fails_fails_its_rows_only(gate):
    with served(engine_of(gate.model, gate.tokenizer)) as server:
        alone = text_of(ask(server))
        gate.fault = RuntimeError("secret")
        broken = ask(server)
        assert (broken.status_code, broken.json()["error"]["code"]) == (500, "engine_error")
        assert "secret" not in broken.text
        gate.fault = RuntimeError("secret")
        with httpx.stream("POST", server.url + CHAT, json=BODY | {"stream": True}, timeout=60) as response:
            told = list(events(response))
        assert told[-2]["choices"][0]["finish_reason"] == "error" and "error" in told[-1]
        assert text_of(ask(server)) == alone and is_empty(server)


def test_a_row_without_finite_logits_fails_alone(gate):
    """One prompt has a token whose embedding is poisoned."""
    word = gate.tokenizer(" capit", add_special_tokens=False)["input_ids"]
    with served(engine_of(gate.model, gate.tokenizer)) as server, ThreadPoolExecutor() as pool:
        alone = text_of(ask(server))
        weight = gate.model.get_input_embeddings().weight
        gate.model.get_input_embeddings().register_forward_hook(
            lambda module, args, output: output.masked_fill((args[0] == word[0]).any(1)[:, None, None], float("nan"))
        )
        assert weight.isfinite().all()
        bad = {"messages": [{"role": "user", "content": "capit capit"}]}
        both = [pool.submit(ask, server), pool.submit(ask, server, **bad)]
        assert text_of(both[0].result()) == alone
        assert both[1].result().status_code == 500


def test_a_slow_reader_loses_frames_and_no_text():
    """Twenty steps come before anybody reads: the last eight views are there, and all tokens that are final."""

    async def read():
        dropped = []
        text = AnswerText(TOKENIZER, ["never"])
        answer = Answer(text, slice(2, 22), 2, Waker(), streams=True, watches=True, on_drop=lambda: dropped.append(1))
        for step in range(20):
            assert not answer.on_final(list(range(7, 8 + step)))
            answer.on_view(step)
        assert list(answer.views) == list(range(12, 20)) and len(dropped) == 12
        assert answer.final == list(range(7, 27))

    asyncio.run(read())


def test_drain(gate):
    """What runs may finish within the grace; what is left then ends with what it has; nothing new is taken."""
    with served(engine_of(gate.model, gate.tokenizer), rows=1) as server, ThreadPoolExecutor() as pool:
        whole = text_of(ask(server))
        gate.close()
        first, waiting = pool.submit(ask, server), None
        until(gate.entered.is_set)
        server.batcher.drain(60)
        refused = ask(server)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert httpx.get(f"{server.url}/health/ready").status_code == 503
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        gate.open()
        assert text_of(first.result()) == whole
    with served(engine_of(gate.model, gate.tokenizer), rows=1) as server, ThreadPoolExecutor() as pool:
        gate.close()
        first = pool.submit(ask, server)
        until(gate.entered.is_set)
        waiting = pool.submit(ask, server)
        until(lambda: server.batcher.queued == 1)
        server.batcher.drain(0)
        time.sleep(0.01)
        gate.open()
        (choice,) = first.result().json()["choices"]
        assert choice["finish_reason"] == "abort" and whole[0].startswith(choice["message"]["content"])
        assert choice["dllm"]["forwards"] == 1
        assert waiting.result().status_code == 503  # it has not begun, so another server may do it


def test_keys_in_turn(gate):
    """One key's many requests do not stand before another's one."""
    keys = ("first", "second")
    with served(engine_of(gate.model, gate.tokenizer), rows=1, api_keys=keys) as server, ThreadPoolExecutor() as pool:
        done, lock = [], threading.Lock()

        def ask_as(key, number):
            header = {"Authorization": f"Bearer {key}"}
            answer = httpx.post(server.url + CHAT, json=BODY | {"max_tokens": 1}, headers=header, timeout=60)
            with lock:
                done.append((key, number, answer.json()["choices"][0]["dllm"]["queued_seconds"]))

        gate.close()
        sent = [pool.submit(ask_as, "first", 0)]
        until(gate.entered.is_set)
        for number in range(1, 5):
            sent.append(pool.submit(ask_as, "first", number))
            until(lambda number=number: server.batcher.queued == number)
        sent.append(pool.submit(ask_as, "second", 0))
        until(lambda: server.batcher.queued == 5)
        gate.open()
        for one in sent:
            one.result()
        queued = {(key, number): seconds for key, number, seconds in done}
        assert sum(queued["second", 0] > queued["first", number] for number in range(5)) <= 2


def packed(model):
    if attention_of(with_packed_attention(model)) != PACKED:
        pytest.skip("rows run packed on a CPU with AVX-512 and with the C++ extension")
    return model


def test_large_bodies_leave_threads_to_others(monkeypatch):
    """More of them than a pool has threads, none of which is ever read: short requests are, and those that wait get
    504 in time."""
    reading, let_go, lock = [], threading.Event(), threading.Lock()

    def order_of(engine, body, **options):
        if len(body.messages[0].text) > serving.LARGE:
            with lock:
                reading.append(body)
            let_go.wait(60)
        return real(engine, body, **options)

    real = serving.order_of
    monkeypatch.setattr(serving, "order_of", order_of)
    large = {"messages": [{"role": "user", "content": "1 " * serving.LARGE}]}
    with served(engine_of(), timeout=5.0) as server, ThreadPoolExecutor(48) as pool:
        asked = [pool.submit(ask, server, **large) for _ in range(48)]
        until(lambda: reading)
        assert ask(server).status_code == 200
        at_once = max(1, os.cpu_count() // 2)
        for done in itertools.islice(as_completed(asked, timeout=60), len(asked) - at_once):
            assert done.result().status_code == 504
        assert len(reading) == at_once
        let_go.set()
        assert sorted(found.result().status_code for found in asked) == [400] * at_once + [504] * (48 - at_once)


def test_the_server_says_where_bits_depend_on_company():
    """On a CPU they do with rows as wide as the widest that do not run packed, and with a compiled body."""
    assert engine_of().invariant == "exact"
    assert engine_of(width_multiple=None).invariant == "rounding"
    engine = engine_of()
    compiled = replace(engine.config, compile_body=True)
    assert replace(engine, config=compiled).invariant == "rounding"


@pytest.mark.parametrize(
    ("sampler", "config", "invariant"),
    [
        (FastDLLMSampler, FastDLLMSamplerConfig(max_new_tokens=8, block_size=4, cache="prefix"), "exact"),
        (BD3LMSampler, BD3LMSamplerConfig(max_new_tokens=8, block_size=4, cache=True), "exact"),
        (BD3LMSampler, BD3LMSamplerConfig(max_new_tokens=8, block_size=4, cache=False), "rounding"),
    ],
)
def test_rows_beside_a_cache_run_one_at_a_time(sampler, config, invariant):
    """So they have their own bits, which rows of several lengths need not have where they attend by blocks together."""
    tokenizer = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=EOS, pad_token_id=1)
    engine = Engine(sampler(causal_model(), tokenizer), config, name="tiny")
    assert engine.invariant == invariant
    reports = []
    batcher = Batcher(engine.sampler.model, width_multiple=engine.width_multiple, on_step=reports.append)
    batcher.start()

    def submit(number):
        prompt, ended = [5, 6, 7, 8][: 1 + number % 4], SimpleQueue()
        own = dict(new=4 + 4 * (number % 3), temperature=4.0, steps=None, block_length=None)
        work = Work.of(engine.plan(prompt, [number], **own))
        listener = SimpleNamespace(watches=False, on_final=lambda _: False, on_end=ended.put)
        batcher.submit_all([Ticket(work.batch, work.policy, work.eos_id, listener, keeps_log_probs=True)])
        return ended

    def bits(ended):
        end = ended.get(timeout=60)
        assert end.kind == "finished"
        return end.tokens, struct.pack(f"{len(end.log_probs)}f", *end.log_probs)

    alone = [bits(submit(number)) for number in range(12)]
    del reports[:]
    together = [bits(ended) for ended in [submit(number) for number in range(12)]]
    batcher.close()
    most = max(report.rows for report in reports)
    assert (most == 1 and together == alone) if invariant == "exact" else most > 1


def test_packed_rows_have_their_own_bits_whatever_their_width():
    model, tokenizer = load_shipped()
    engine = engine_of(packed(model), tokenizer, width_multiple=None)
    assert engine.invariant == "exact"
    assert replace(engine, config=replace(engine.config, compile_body=True)).invariant == "rounding"
    with served(engine) as server, ThreadPoolExecutor(8) as pool:
        body = {"logprobs": True} | BODY

        def answer(number):
            question = [{"role": "user", "content": "What is " + "1 + " * number + "2?"}]
            tokens = 6 + number
            found = ask(server, **body | dict(messages=question, seed=number, max_tokens=tokens, steps=tokens))
            return found.json()["choices"][0]["logprobs"]["content"]

        alone = [answer(number) for number in range(8)]
        assert list(pool.map(answer, range(8))) == alone
        rows, steps = (metric(server, f"dllm_rows_per_step_{name}") for name in ("sum", "count"))
        assert rows > steps  # some ran together
