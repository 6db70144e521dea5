"""The official client of OpenAI's API, sync and async, against a server of the bundled model."""

import asyncio
import math

import httpx
import openai
import pytest

from dllm.core.samplers import MDLMSampler
from dllm.demo.shipped import load_shipped
from tests.live_server import NAME, SHORT

ASK = [{"role": "user", "content": "What is 12 * 4?"}]
WILD = dict(temperature=4.0, seed=11)


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def chat(client, **body):
    return client.chat.completions.create(**ours(dict(model=NAME, messages=ASK) | body))


def complete(client, **body):
    return client.completions.create(**ours(dict(model=NAME, prompt="6 * 7 =") | body))


def ours(body):
    """The client sends fields that it does not know as `extra_body`."""
    extra = {name: body.pop(name) for name in ("steps", "block_length", "denoise") if name in body}
    return body | {"extra_body": extra}


def joined(chunks, index=0):
    """Text, end and last information of a streamed choice."""
    own = [(chunk, choice) for chunk in chunks for choice in chunk.choices if choice.index == index]
    texts = [choice.delta.content or "" if hasattr(choice, "delta") else choice.text for _, choice in own]
    return "".join(texts), own[-1][1].finish_reason, own[-1][0].dllm


def test_a_plain_answer_can_be_had_again(client):
    first = chat(client)
    choice = first.choices[0]
    assert choice.message.content == "12 * 4 = 48." and choice.finish_reason == "stop"
    assert first.usage.completion_tokens == 6 and first.usage.total_tokens == first.usage.prompt_tokens + 6
    assert choice.dllm["forwards"] == 8 and choice.dllm["canvas"] == 16
    drawn = chat(client, temperature=4.0)
    again = chat(client, temperature=4.0, seed=drawn.choices[0].dllm["seed"])
    assert again.choices[0].message.content == drawn.choices[0].message.content


def test_tokens_are_those_of_the_sampler(client):
    model, tokenizer = load_shipped()
    sampler = MDLMSampler(model, tokenizer)
    prompts = ["6 * 7 =", "There are 4 trains", "1"]
    found = complete(client, prompt=prompts, n=2, max_tokens=12, steps=6, **WILD)
    settings = SHORT | dict(max_new_tokens=12, steps=6, temperature=4.0)
    for number, prompt in enumerate(prompts):
        tokens = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        for copy in range(2):
            (row,) = sampler.sample_many([tokens], seed=11 + copy, width_multiple=32, **settings)
            text = tokenizer.decode(row.tokens[len(tokens) :].tolist(), skip_special_tokens=True)
            assert found.choices[2 * number + copy].text == text
    assert [choice.index for choice in found.choices] == list(range(6))


def test_n_are_the_seeds_that_follow(client):
    found = chat(client, n=3, **WILD)
    assert [choice.dllm["seed"] for choice in found.choices] == [11, 12, 13]
    assert chat(client, temperature=4.0, seed=13).choices[0].message.content == found.choices[2].message.content


def test_streams_add_up_to_the_plain_answer(client):
    for body in (dict(), WILD, dict(n=2, **WILD), dict(stop=["="]), dict(stop=["4 =", "*"], **WILD)):
        plain = chat(client, **body)
        chunks = list(chat(client, stream=True, **body))
        for choice in plain.choices:
            text, reason, told = joined(chunks, choice.index)
            assert (text, reason) == (choice.message.content, choice.finish_reason)
            assert told["forwards"] == choice.dllm["forwards"]
        assert chunks[0].choices[0].delta.role == "assistant"


def test_streamed_completions(client):
    plain = complete(client, max_tokens=8, logprobs=0, **WILD)
    chunks = list(complete(client, max_tokens=8, logprobs=0, stream=True, **WILD))
    assert joined(chunks)[:2] == (plain.choices[0].text, plain.choices[0].finish_reason)
    told = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [one for part in told for one in getattr(part, name)] == getattr(plain.choices[0].logprobs, name)


def test_usage_of_a_stream(client):
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage == chat(client).usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert all(chunk.usage is None for chunk in chat(client, stream=True))


def test_stop_ends_the_row(client):
    whole, cut = chat(client), chat(client, stop="=")
    assert cut.choices[0].message.content == "12 * 4" and cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].dllm["forwards"] <= whole.choices[0].dllm["forwards"]
    assert cut.usage.completion_tokens == 4


def test_logprobs(client):
    """Of the step that commits a token: at one token a step, the last one's is that of the whole canvas."""
    found = chat(client, logprobs=True, max_tokens=6, steps=6, **WILD).choices[0].logprobs.content
    assert all(-100 < entry.logprob <= 0 and not entry.top_logprobs for entry in found)
    assert len({entry.logprob for entry in found}) > 1
    assert all(bytes(entry.bytes).decode() == entry.token for entry in found)
    streamed = chat(client, logprobs=True, max_tokens=6, steps=6, stream=True, **WILD)
    told = [one for chunk in streamed for choice in chunk.choices if choice.logprobs for one in choice.logprobs.content]
    assert told == found
    assert chat(client, max_tokens=6, **WILD).choices[0].logprobs is None


def test_logprobs_of_answers_with_half_characters(client):
    """At this temperature all tokens are as likely: many are bytes that make no character."""
    found = chat(client, logprobs=True, n=8, max_tokens=12, temperature=100.0, seed=8).choices
    for choice in found:
        told = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
        assert told.decode("utf-8", "replace").strip() == choice.message.content
        assert all(bytes(entry.bytes).decode("utf-8", "replace") == entry.token for entry in choice.logprobs.content)
    assert any(choice.message.content.endswith("�") for choice in found)
    body = dict(max_tokens=12, temperature=100.0, logprobs=0)
    for seed in range(3):
        choice = complete(client, seed=seed, **body).choices[0]
        for name, place in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
            # bytes that make no character are part of what the next token adds
            assert "�" in name or choice.text[place:].lstrip("�").startswith(name)
        streamed = list(complete(client, seed=seed, stream=True, **body))
        parts = [choice.logprobs for chunk in streamed for choice in chunk.choices if choice.logprobs]
        assert [name for part in parts for name in part.tokens] == choice.logprobs.tokens


def test_frames_show_every_step(client):
    chunks = list(chat(client, stream=True, denoise=True, **WILD))
    frames = [chunk for chunk in chunks if getattr(chunk, "type", None) == "diffusion_frame"]
    assert 1 <= len(frames) <= 8 and frames[-1].total == 8
    assert frames[-1].step == joined(chunks)[2]["forwards"]
    assert "columns" not in frames[0].dllm and len(frames[0].dllm["pieces"]) == 16
    pieces, states = list(frames[0].dllm["pieces"]), list(frames[0].dllm["states"])
    for frame in frames[1:]:
        told = frame.dllm
        for column, piece, state in zip(told["columns"], told["pieces"], told["states"], strict=True):
            pieces[column], states[column] = piece, state
        assert all(value is None or 0 <= value <= 1 for value in told["confidence"])
    assert set(states) <= {"n", "c"}
    assert joined(chunks)[0] == chat(client, **WILD).choices[0].message.content
    assert frames[-1].text == joined(chunks)[0]


def test_infill(client):
    """Masks before a suffix, and masks in token ids; both as the sampler fills them."""
    model, tokenizer = load_shipped()
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("6 * 7 =", "."))
    row = [*before, *[tokenizer.mask_token_id] * 3, *after]
    settings = SHORT | dict(stop_at_eos=False, steps=3, temperature=4.0)
    filled = MDLMSampler(model, tokenizer).infill([row], seed=11, **settings)[0].tolist()
    own = tokenizer.decode(filled[len(before) : -len(after)], skip_special_tokens=True)

    between = complete(client, suffix=".", max_tokens=3, steps=3, **WILD)
    assert between.choices[0].text == own and between.usage.completion_tokens == 3
    assert between.usage.prompt_tokens == len(before) + len(after)
    holes = complete(client, prompt=row, steps=3, **WILD)
    assert holes.choices[0].text == tokenizer.decode(filled, skip_special_tokens=True)
    assert holes.choices[0].finish_reason == "stop" and holes.usage.completion_tokens == 3
    for body, plain in ((dict(suffix=".", max_tokens=3), between), (dict(prompt=row), holes)):
        assert joined(list(complete(client, stream=True, steps=3, **WILD, **body)))[0] == plain.choices[0].text


def test_usage_of_an_infill_ends_at_a_stop(client):
    """One mask stands before a stop that is given, and two behind it."""
    tokenizer = load_shipped()[1]
    mask, (stop,) = tokenizer.mask_token_id, tokenizer(" =", add_special_tokens=False)["input_ids"]
    found = complete(client, prompt=[5, mask, stop, mask, mask], stop="=", steps=3)
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (2, 1)
    assert found.choices[0].finish_reason == "stop" and "=" not in found.choices[0].text


def test_models_and_tokens(client, server):
    (model,) = client.models.list().data
    assert model.id == NAME == client.models.retrieve(NAME).id
    assert model.dllm["positions"] == 192 and model.dllm["invariant"] == "exact"
    assert model.dllm["defaults"]["max_tokens"] == 16
    body = {"messages": ASK}
    found = httpx.post(f"{server.url}/v1/tokenize", json=body).json()
    assert found["count"] == len(found["ids"]) == chat(client).usage.prompt_tokens


def test_error_classes(client, server):
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, tools=[{"type": "function", "function": {"name": "f"}}])
    assert (refused.value.param, refused.value.code) == ("tools", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError) as long:
        chat(client, max_tokens=200)
    assert long.value.code == "context_length_exceeded" and "192" in long.value.message
    with pytest.raises(openai.NotFoundError):
        chat(client, model="gpt-4")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.PermissionDeniedError):
        chat(client, extra_headers={"Origin": "http://elsewhere.example"})


def test_the_async_client(server):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            plain, streamed = await asyncio.gather(
                client.chat.completions.create(model=NAME, messages=ASK, **WILD),
                client.chat.completions.create(model=NAME, messages=ASK, stream=True, **WILD),
            )
            chunks = [chunk async for chunk in streamed]
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(model=NAME, messages=ASK, logit_bias={"1": 1})
        assert joined(chunks)[:2] == (plain.choices[0].message.content, plain.choices[0].finish_reason)

    asyncio.run(ask())


def test_no_logprob_is_lost_to_json(client):
    """-inf would be no JSON."""
    found = complete(client, max_tokens=4, logprobs=0, steps=1, **WILD).choices[0].logprobs
    assert all(math.isfinite(value) for value in found.token_logprobs)
