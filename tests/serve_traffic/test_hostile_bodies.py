"""Bodies that are wrong, too large or hostile: refused by name, and nobody else notices."""

import contextlib
import json
import threading
import time

import pytest

pytest.importorskip("fastapi")

from tests.live_server import until
from tests.running_server import QUESTION, raw_request, running

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def server():
    with running(rows=4, max_queue=16, body_timeout=1.0) as server:
        yield server


def chat(**fields):
    return json.dumps({"messages": QUESTION, "max_tokens": 8, "steps": 2} | fields).encode()


def message(**fields):
    return chat(messages=[{"role": "user", "content": "Hi"} | fields])


DEEP = b'{"messages": ' + b"[" * 40 + b"]" * 40 + b"}"
HOSTILE = {
    "NaN": (chat()[:-1] + b', "temperature": NaN}', 400, None),
    "infinite": (chat()[:-1] + b', "temperature": 1e999}', 400, "temperature"),
    "-Infinity": (chat()[:-1] + b', "temperature": -Infinity}', 400, None),
    "integer of 5000 digits": (chat()[:-1] + b', "seed": ' + b"9" * 5000 + b"}", 400, None),
    "seed beyond 64 bits": (chat(seed=2**63), 400, "seed"),
    "40 levels": (DEEP, 400, None),
    "100000 levels": (b"[" * 100_000, 400, None),
    "100000 levels of objects": (b'{"a":' * 100_000, 400, None),
    "field twice": (chat()[:-1] + b', "max_tokens": 9}', 400, None),
    "one of 100000 fields twice": (
        b"{" + b"".join(b'"%d":1,' % number for number in range(100_000)) + b'"5":1}',
        400,
        None,
    ),
    "no UTF-8": (chat().replace(b"plus", b"\xff\xfe"), 400, None),
    "UTF-16": (chat().decode().encode("utf-16"), 400, None),
    "half a pair": (rb'{"messages": [{"role": "user", "content": "\ud800"}]}', 400, None),
    "half a pair as a name": (chat()[:-1] + rb', "\ud800": 1}', 400, None),
    "half a pair as the model": (chat()[:-1] + rb', "model": "\udfff"}', 400, None),
    "a name of 100 KB": (chat()[:-1] + b', "' + b"x" * 100_000 + b'": 1}', 400, "any"),
    "nothing": (b"", 400, None),
    "null": (b"null", 400, None),
    "an array": (b"[]", 400, None),
    "half": (chat()[:-9], 400, None),
    "two": (chat() * 2, 400, None),
    "no messages": (b"{}", 400, "messages"),
    "empty messages": (chat(messages=[]), 400, "messages"),
    "messages: object": (chat(messages={}), 400, "messages"),
    "message: text": (chat(messages=["Hi"]), 400, "messages"),
    "message: null": (chat(messages=[None]), 400, "messages"),
    "1025 messages": (chat(messages=[{"role": "user", "content": ""}] * 1025), 400, "messages"),
    "unknown role": (message(role="wizard"), 400, "messages"),
    "tool role": (message(role="tool"), 400, "messages"),
    "content: number": (message(content=5), 400, "messages"),
    "content: image": (message(content=[{"type": "image_url", "image_url": {"url": "http://a"}}]), 400, "messages"),
    "message field": (message(weight=1), 400, "messages"),
    "max_tokens: text": (chat(max_tokens="8"), 400, "max_tokens"),
    "max_tokens: 0": (chat(max_tokens=0), 400, "max_tokens"),
    "max_tokens: -1": (chat(max_tokens=-1), 400, "max_tokens"),
    "max_tokens: 8.5": (chat(max_tokens=8.5), 400, "max_tokens"),
    "max_tokens: true": (chat(max_tokens=True), 400, "max_tokens"),
    "max_tokens: 193": (chat(max_tokens=193), 400, "max_tokens"),
    "max_tokens: 2^31": (chat(max_tokens=2**31), 400, "max_tokens"),
    "temperature: -1": (chat(temperature=-1), 400, "temperature"),
    "temperature: list": (chat(temperature=[0.5]), 400, "temperature"),
    "steps: 0": (chat(steps=0), 400, "steps"),
    "block_length: -1": (chat(block_length=-1), 400, "block_length"),
    "n: 9": (chat(n=9), 400, "n"),
    "n: 0": (chat(n=0), 400, "n"),
    "stream: text": (chat(stream="yes"), 400, "stream"),
    "stop: empty": (chat(stop=""), 400, "stop"),
    "stop: five": (chat(stop=list("abcde")), 400, "stop"),
    "stop: numbers": (chat(stop=[1]), 400, "stop"),
    "unknown field": (chat(top_n=1), 400, "top_n"),
    "tools": (chat(tools=[{"type": "function"}]), 400, "tools"),
    "logit_bias": (chat(logit_bias={"5": 1}), 400, "logit_bias"),
    "top_p": (chat(top_p=0.9), 400, "top_p"),
    "penalty": (chat(presence_penalty=1), 400, "presence_penalty"),
    "json mode": (chat(response_format={"type": "json_object"}), 400, "response_format"),
    "overlong text": (message(content="apple " * 20_000), 400, "any"),
    "1 MiB of text": (message(content="a" * (2**20 - 200)), 400, "any"),
    "over 1 MiB": (message(content="a" * 2**20), 413, None),
    "another model": (chat(model="gpt-5"), 404, "model"),
}


def check(response, status, param):
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/json" and len(response.content) < 1000
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]
    assert "Traceback" not in response.text and ".py" not in response.text
    assert param == "any" or (error["param"] or "").partition(".")[0] == (param or "")


@pytest.mark.parametrize("name", HOSTILE)
def test_wrong_bodies(server, name):
    content, status, param = HOSTILE[name]
    check(server.post(content), status, param)


TOKENS = {
    "no ids": ([], "prompt"),
    "an empty text": ("", "prompt"),
    "an empty prompt among others": ([[5], []], "prompt"),
    "beyond the vocabulary": ([5, 2048], "any"),
    "far beyond it": ([5, 2**31 - 1], "any"),
    "negative": ([5, -1], "prompt"),
    "fractions": ([5.5], "prompt"),
    "truths": ([True], "prompt"),
    "200 of them": ([5] * 200, "any"),
    "texts and ids": (["a", [5]], "prompt"),
    "the mask as text": ("[MASK]", "prompt"),
    "17 prompts where 16 may wait": ([[5]] * 17, "prompt"),
}


@pytest.mark.parametrize("name", TOKENS)
def test_wrong_prompts(server, name):
    prompt, param = TOKENS[name]
    body = json.dumps({"prompt": prompt, "max_tokens": 8}).encode()
    check(server.post(body, "/v1/completions"), 400, param)


def test_wrong_requests(server):
    check(server.client.get("/v1/chat/completions"), 405, None)
    check(server.client.get("/v1/nothing"), 404, None)
    check(server.client.post("/v1/chat/completions", content=chat(), headers={"Content-Type": "text/plain"}), 415, None)
    check(server.post(chat(), Host="evil.example"), 403, None)
    check(server.post(chat(), Origin="http://evil.example"), 403, None)
    check(server.post(chat(), **{"Content-Encoding": "gzip"}), 415, None)


def test_two_megabytes_in_chunks(server):
    """No length is announced, so the server must count."""
    sent = 0

    def chunks():
        nonlocal sent
        for _ in range(32):
            sent += 2**16
            yield b" " * 2**16

    response = server.client.post(
        "/v1/chat/completions", content=chunks(), headers={"Content-Type": "application/json"}
    )
    check(response, 413, None)


def test_half_a_body_is_given_up(server):
    """Slow loris: connections that never end what they say. Others are answered meanwhile."""
    threads = threading.active_count()
    whole = raw_request({"messages": QUESTION})
    waiting = [server.send(part) for part in (b"", whole[:30], whole[:-1], whole[:-20]) for _ in range(8)]
    try:
        began = time.monotonic()
        assert server.chat().status_code == 200
        drip = waiting[-1]
        with contextlib.suppress(OSError):  # the server has closed it
            while time.monotonic() < began + 1.5:  # a byte now and then is no progress
                drip.sendall(b" ")
                time.sleep(0.3)
        for connection in waiting[-16:]:
            assert b" 408 " in connection.recv(65536).partition(b"\r\n")[0] + b" "
        assert server.chat().status_code == 200 and threading.active_count() < threads + 45
    finally:
        for connection in waiting:
            connection.close()
    until(server.is_idle)


def test_others_are_answered_as_ever(server):
    """While all of that comes in, a request has the tokens that it has alone."""
    alone, found, over = server.chat(temperature=4.0).json()["choices"], [], threading.Event()

    def ask():
        while not over.is_set():
            found.append(server.chat(temperature=4.0).json()["choices"])

    canary = threading.Thread(target=ask)
    canary.start()
    try:
        for content, status, _ in HOSTILE.values():
            assert server.post(content).status_code == status
    finally:
        over.set()
        canary.join()
    texts = {choice["message"]["content"] for (choice,) in [alone, *found]}
    assert len(found) > 3 and len(texts) == 1
    assert server.is_idle()
