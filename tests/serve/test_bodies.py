"""What a body may hold: each field is honoured or refused by its name, always in OpenAI's shape, never with 422."""

import json

import httpx
import pytest

from dllm.core.samplers.schedules import MAX_STEPS

CHAT, TEXT, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/v1/tokenize"
ASK = [{"role": "user", "content": "2 + 2?"}]


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as found:
        yield found


def post(http, path, body, **headers):
    content = body if isinstance(body, (str, bytes)) else json.dumps(body)
    return http.post(path, content=content, headers={"Content-Type": "application/json"} | headers)


def refused(response, status, param=None, code=None):
    """A response is an error of this kind."""
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param), response.text
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert code is None or error["code"] == code
    assert "Traceback" not in response.text
    return error


UNSUPPORTED = dict(
    audio={"voice": "alloy"},
    best_of=2,
    echo=True,
    frequency_penalty=0.5,
    function_call="auto",
    functions=[{"name": "f"}],
    logit_bias={"5": 10},
    metadata={"a": "b"},
    modalities=["text", "audio"],
    parallel_tool_calls=False,
    prediction={"type": "content", "content": "x"},
    presence_penalty=-1,
    reasoning_effort="high",
    response_format={"type": "json_object"},
    service_tier="flex",
    store=True,
    tool_choice="required",
    tools=[{"type": "function"}],
    top_k=5,
    top_logprobs=3,
    top_p=0.9,
    web_search_options={},
)


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_what_is_not_offered_is_refused_by_name(http, name):
    refused(post(http, CHAT, {"messages": ASK, name: UNSUPPORTED[name]}), 400, name, "unsupported_parameter")
    refused(post(http, TEXT, {"prompt": "a", name: UNSUPPORTED[name]}), 400, name, "unsupported_parameter")


def test_what_asks_for_nothing_passes(http):
    neutral = dict(frequency_penalty=0, presence_penalty=0.0, top_p=1, top_logprobs=0, logit_bias=None, tools=[])
    neutral |= dict(response_format={"type": "text"}, audio=None, store=False, n=None, stop=None, user="somebody")
    assert post(http, CHAT, {"messages": ASK, "max_tokens": 1} | neutral).status_code == 200


WRONG = {
    "n": (0, 9, 1.5, "2", True, [1]),
    "max_tokens": (0, -1, 1e3, "all", 2**40),
    "max_completion_tokens": (0,),
    "temperature": (-0.1, "hot", True, 101),
    "seed": (2**63, -(2**63) - 1, 1.5, "s"),
    "stop": ("", ["a"] * 5, [""], 3, [3]),
    "stream": ("yes", 1),
    "stream_options": ({"include_usage": True}, {"other": 1}, 5),
    "logprobs": (3, "yes"),
    "user": (5,),
    "steps": (0, 2**17, "many"),
    "block_length": (0, -3),
    "denoise": (True, 5),  # True needs a stream
    "bogus": (None, 1),
    "messages": ([], {}, "hi", [5], [[]], [{"role": "tool", "content": "a"}], [{"role": "user"}]),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_wrong_values(http, name):
    for value in WRONG[name]:
        refused(post(http, CHAT, {"messages": ASK} | {name: value}), 400, name)


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"block_length": 1}])
def test_steps_have_one_limit(http, more):
    """That of the samplers' blocks, which no share of it exceeds: it is told in one way, and never within a stream."""
    body = {"messages": ASK, "max_tokens": 2} | more
    assert post(http, CHAT, body | {"steps": MAX_STEPS}).status_code == 200
    error = refused(post(http, CHAT, body | {"steps": MAX_STEPS + 1}), 400, "steps", "invalid_value")
    assert error["message"] == f"steps should be less than or equal to {MAX_STEPS}, got {MAX_STEPS + 1}"


WORDS = {
    ("stop", ""): "stop should have at least 1 character, got a string",
    ("stop", ("a", "")): "stop.1 should have at least 1 character, got a string",
    ("stop", ("a",) * 5): "stop should have at most 4 items, got an array",
    ("messages", ()): "messages should have at least 1 item, got an array",
    ("messages", ("a",)): "messages.0 should be an object, got a string",
    ("messages", "a"): "messages should be an array, got a string",
    ("str", 1): "str is not a known field",
    ("list[str]", 1): "list[str] is not a known field",
}


@pytest.mark.parametrize(("name", "value"), WORDS)
def test_what_is_wrong_is_said_of_the_type_that_fits_best(http, name, value):
    error = refused(post(http, CHAT, {"messages": ASK} | {name: value}), 400, name)
    assert error["message"] == WORDS[name, value]


def test_the_token_that_is_wrong_is_named(http):
    words = {-1: "prompt.1 should be greater than or equal to 0, got -1"}
    words |= {2**40: f"prompt.1 should be less than {2**31}, got {2**40}"}
    for token, message in words.items():
        assert refused(post(http, TEXT, {"prompt": [5, token]}), 400, "prompt")["message"] == message


def test_wrong_messages(http):
    for content in (None, 5, [], [{"type": "image_url", "image_url": {}}], [{"type": "text"}], {"text": "a"}):
        refused(post(http, CHAT, {"messages": [{"role": "user", "content": content}]}), 400, "messages")
    refused(post(http, CHAT, {"messages": [*ASK, {"role": "assistant", "content": "4"}]}), 400, "messages")
    refused(post(http, CHAT, {"messages": ASK * 1025}), 400, "messages")
    refused(post(http, CHAT, {"messages": [{"role": "user", "content": "a", "name": "bob"}]}), 400, "messages")
    refused(post(http, CHAT, {}), 400, "messages", "missing_required_parameter")


def test_a_message_that_came_from_the_server_goes_back_to_it(http):
    """As the client dumps it, with all its empty fields."""
    echoed = {"role": "assistant", "content": "4", "refusal": None, "tool_calls": None, "annotations": []}
    assert post(http, CHAT, {"messages": [*ASK, echoed, *ASK], "max_tokens": 1}).status_code == 200


def test_wrong_prompts(http):
    for prompt in ("", [], [[]], ["a", ""], [1, "a"], [-1], [2**40], 5, None, [[1], []], [1.5]):
        refused(post(http, TEXT, {"prompt": prompt}), 400, "prompt")
    refused(post(http, TEXT, {"prompt": [999_999]}), 400)
    refused(post(http, TEXT, {"prompt": "fill [MASK]"}), 400, "prompt")
    refused(post(http, TEXT, {"prompt": [0], "max_tokens": 3}), 400, "max_tokens")  # 0 is the mask
    refused(post(http, TEXT, {"prompt": [0], "suffix": "a"}), 400, "suffix")
    refused(post(http, TEXT, {"prompt": ["a"] * 100}), 400, "prompt")
    refused(post(http, TEXT, {"prompt": "a", "logprobs": 1}), 400, "logprobs")


def test_too_long(http):
    error = refused(post(http, CHAT, {"messages": ASK, "max_tokens": 190}), 400, "max_tokens")
    assert error["code"] == "context_length_exceeded" and "192" in error["message"]
    words = {"role": "user", "content": "many words " * 200}
    assert refused(post(http, CHAT, {"messages": [words]}), 400)["code"] == "context_length_exceeded"
    assert refused(post(http, TEXT, {"prompt": [0] * 193}), 400, "prompt")["code"] == "context_length_exceeded"


BROKEN = {
    "no JSON": b"hello",
    "nothing": b"",
    "cut": b'{"messages": [',
    "a list": b"[]",
    "a number": b"3",
    "NaN": b'{"temperature": NaN}',
    "infinity": b'{"temperature": -Infinity}',
    "no UTF-8": b'{"user": "\xff"}',
    "UTF-16": '{"user": "a"}'.encode("utf-16"),
    "half a character": b'{"user": "\\ud800"}',
    "a name twice": b'{"n": 1, "n": 2}',
    "deep": b'{"messages": ' + b"[" * 40 + b"]" * 40 + b"}",
    "very deep": b'{"messages": ' + b"[" * 100_000,
    "deep objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "a long number": b'{"seed": ' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_bodies(http, kind):
    for path in (CHAT, TEXT, TOKENIZE):
        refused(post(http, path, BROKEN[kind]), 400, code="invalid_json")


def test_numbers_that_overflow(http):
    refused(
        post(http, CHAT, '{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}'), 400, "temperature"
    )


def test_large_bodies(http):
    """Told by their length, and in chunks that tell none."""
    refused(post(http, CHAT, b"x" * (2**20 + 1)), 413, code="body_too_large")
    chunks = (b"x" * 2**16 for _ in range(32))
    sent = http.post(CHAT, content=chunks, headers={"Content-Type": "application/json"})
    refused(sent, 413, code="body_too_large")


def test_only_json(http):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", ""):
        refused(post(http, CHAT, {"messages": ASK}, **{"Content-Type": kind}), 415)
    assert post(http, TOKENIZE, {"prompt": "a"}, **{"Content-Type": "application/json; charset=utf-8"}).is_success


def test_routes_that_are_none(http):
    refused(http.get("/v2"), 404)
    refused(http.get(CHAT), 405)
    refused(http.post("/v1/embeddings", json={}), 404)
    for path in ("/docs", "/openapi.json", "/redoc", "/v1/models/"):
        refused(http.get(path), 404, "model" if "models" in path else None)


def test_tokenize(http):
    found = post(http, TOKENIZE, {"prompt": "6 * 7"}).json()
    assert found["count"] == len(found["ids"]) == 3 and found["positions"] == 192
    refused(post(http, TOKENIZE, {}), 400, "prompt")
    refused(post(http, TOKENIZE, {"prompt": "a", "messages": ASK}), 400, "prompt")
    refused(post(http, TOKENIZE, {"prompt": "a", "model": "other"}), 404, "model")
    refused(post(http, TOKENIZE, {"prompt": "a", "top_p": 1}), 400, "top_p")


def test_what_users_write_is_no_special_token(http):
    spelled = post(http, TOKENIZE, {"messages": [{"role": "user", "content": "a [MASK] b [/Answer]"}]}).json()["ids"]
    assert 0 not in spelled and 4 not in spelled[:-1]
    assert post(http, CHAT, {"messages": [{"role": "user", "content": "[MASK]"}], "max_tokens": 1}).is_success
