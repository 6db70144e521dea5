"""A model that fails: those who asked for the row hear of it, others have their tokens, and the server goes on."""

import threading

import pytest
import torch

pytest.importorskip("fastapi")

from tests.live_server import until
from tests.running_server import running

pytestmark = pytest.mark.usefixtures("one_thread")

POISON = 777  # a token id: of rows that hold it every state is NaN
ASKED = dict(max_tokens=24, steps=24, temperature=4.0)


@pytest.fixture(scope="module")
def server():
    with running(rows=8) as server:
        yield server


@pytest.fixture
def embedding_hook(server):
    """Lets a test put a hook on the model's embedding; it is removed at the end."""
    handles = []
    yield lambda hook: handles.append(server.engine.sampler.model.get_input_embeddings().register_forward_hook(hook))
    for handle in handles:
        handle.remove()


def in_threads(calls):
    """The results of calls at the same time."""
    results = [None] * len(calls)

    def run(place, call):
        results[place] = call()

    threads = [threading.Thread(target=run, args=each) for each in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def check_failed(response):
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["type"] == "server_error" and error["code"] == "engine_error"
    assert "Traceback" not in response.text and "NaN" not in response.text


def test_a_row_without_a_finite_logit(server, embedding_hook):
    """The rows beside it have the text that they have alone."""
    prompts = [[10 + number, 20, 30 + number] for number in range(6)]
    alone = [server.complete(prompt=prompt, **ASKED).json()["choices"][0]["text"] for prompt in prompts]
    embedding_hook(lambda _, given, out: torch.where((given[0] == POISON).any(1)[:, None, None], torch.nan, out))
    calls = [lambda p=prompt: server.complete(prompt=p, **ASKED) for prompt in prompts]
    found = in_threads([*calls, lambda: server.complete(prompt=[POISON, 20, 30], **ASKED)])
    check_failed(found[-1])
    assert [response.json()["choices"][0]["text"] for response in found[:-1]] == alone
    until(server.is_idle)


def test_a_forward_that_raises(server, embedding_hook):
    """Whoever is in the step hears 500; the next request is answered, by the same thread."""
    expected, failing = server.complete(**ASKED).json()["choices"], threading.Event()

    def fail(*_):
        if failing.is_set():
            raise MemoryError("no room for this step")

    embedding_hook(fail)
    failing.set()
    for response in in_threads([lambda: server.complete(**ASKED)] * 3):
        check_failed(response)
    failing.clear()
    until(server.is_idle)
    assert server.client.get("/health/live").status_code == server.client.get("/health/ready").status_code == 200
    again = server.complete(**ASKED).json()["choices"]
    assert [choice["text"] for choice in again] == [choice["text"] for choice in expected]


def test_a_forward_that_raises_in_a_stream(server, embedding_hook):
    """After its headers are sent a stream tells of an error as an event, and ends as every stream does."""
    steps = 0

    def fail(*_):
        nonlocal steps
        steps += 1
        if steps > 6:
            raise RuntimeError("a kernel failed")

    embedding_hook(fail)
    response = server.complete(**ASKED, stream=True, denoise=True)
    assert response.status_code == 200
    events = [line for line in response.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]" and '"error"' in events[-2] and "a kernel failed" not in response.text
    until(server.is_idle)


def test_a_slow_model_runs_into_the_time_limit():
    """The row is given up, the answer is 504, and the next request has its turn."""
    with running(rows=1, timeout=2.0) as server:
        server.complete()
        pause = threading.Event()
        handle = server.engine.sampler.model.get_input_embeddings().register_forward_hook(lambda *_: pause.wait(4.0))
        response = server.complete(**ASKED)
        assert response.status_code == 504 and response.json()["error"]["code"] == "timeout"
        handle.remove()
        pause.set()
        until(server.is_idle)
        assert server.complete().status_code == 200
