"""What is learnt of a conversation, under templates that write it in several ways."""

import logging

import pytest

from dllm.data import chat
from dllm.data.chat import default_sft_map_fn
from tests.data.character_tokenizer import (
    COUNTING,
    ENDING,
    OPENED,
    PLAIN,
    TAGGED,
    THINKING,
    assistant,
    learnt,
    letters,
    slow_letters,
    user,
)

TALK = [user("Q1"), assistant("A1"), user("Q2"), assistant("A2")]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": None}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "adds"}}


@pytest.fixture(autouse=True)
def _nothing_said_before(monkeypatch):
    monkeypatch.setattr(chat, "_said", set())


def sample_of(messages, tokenizer, tools=None, **options):
    return default_sft_map_fn({"messages": messages, "tools": tools}, tokenizer=tokenizer, **options)


def whole(sample, tokenizer) -> str:
    return tokenizer.decode(sample["input_ids"])


@pytest.mark.parametrize("make", [letters, slow_letters])
@pytest.mark.parametrize(
    ("template", "last", "every"),
    [
        (PLAIN, "A2<end>", ["A1<end>", "A2<end>"]),
        (THINKING, "<think></think>A2<end>", ["A1<end>", "<think></think>A2<end>"]),
        (OPENED, "A2<end>", ["A1<end>", "A2<end>"]),
        (TAGGED, "A2<end>", ["A1<end>", "A2<end>"]),
        (PLAIN.replace("m.content", "m.content | trim"), "A2<end>", ["A1<end>", "A2<end>"]),
    ],
)
def test_the_answers_are_learnt(make, template, last, every):
    tokenizer = make(template)
    sample = sample_of(TALK, tokenizer)
    assert learnt(sample, tokenizer) == [last]
    assert sample["prompt_len"] == sample["labels"].count(-100) - whole(sample, tokenizer).endswith("\n")
    assert whole(sample, tokenizer) == tokenizer.apply_chat_template(TALK, tokenize=False)
    assert learnt(sample_of(TALK, tokenizer, answers="all"), tokenizer) == every


@pytest.mark.parametrize("make", [letters, slow_letters])
def test_a_prompt_that_cannot_be_told_is_refused(make):
    """The prompt in training is another than that for which the model is asked: here it counts the messages."""
    with pytest.raises(ValueError, match=r"messages before message 3 otherwise .* \(in the row that begins with 'Q1'"):
        sample_of(TALK, make(COUNTING))
    assert "labels" in sample_of(TALK, make(COUNTING), mask_prompt_loss=False)


def test_an_answer_whose_end_cannot_be_told_is_refused():
    tokenizer = letters(ENDING)
    assert learnt(sample_of(TALK, tokenizer), tokenizer) == ["A2<end>"]
    with pytest.raises(ValueError, match="ends message 1 otherwise than a last answer"):
        sample_of(TALK, tokenizer, answers="all")


def test_a_conversation_that_begins_with_an_answer():
    tokenizer = letters()
    assert learnt(sample_of([assistant("Hi")], tokenizer), tokenizer) == ["Hi<end>"]
    greeted = [assistant("Hi"), *TALK]
    assert learnt(sample_of(greeted, tokenizer, answers="all"), tokenizer) == ["Hi<end>", "A1<end>", "A2<end>"]


@pytest.mark.parametrize("tokenizer", [letters(merges=[("a", "b")]), slow_letters()])
def test_a_token_that_spans_prompt_and_answer_is_the_answers(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    sample = sample_of([user("Qa"), assistant("bR")], tokenizer)
    assert tokenizer.convert_ids_to_tokens(sample["input_ids"]) == ["Q", "ab", "R"]
    assert sample["labels"] == [-100, *sample["input_ids"][1:]] and sample["prompt_len"] == 1


def test_weights():
    tokenizer = letters()
    weighed = [user("Q1", weight=0), assistant("A1", weight=1), user("Q2"), assistant("A2", weight=0.0)]
    assert learnt(sample_of(weighed, tokenizer, answers="all"), tokenizer) == ["A1<end>"]
    nothing = sample_of(weighed, tokenizer)
    assert set(nothing["labels"]) == {-100} and nothing["prompt_len"] == len(nothing["input_ids"])
    prompts_too = sample_of(weighed, tokenizer, mask_prompt_loss=False)
    assert learnt(prompts_too, tokenizer) == ["u:Q1<end>a:A1<end>u:Q2<end>a:"]
    with pytest.raises(ValueError, match=r"weight must be 0 or 1, got 0\.5"):
        sample_of([user("Q"), assistant("A", weight=0.5)], tokenizer)


def test_tools_and_calls_are_carried():
    tokenizer = letters(THINKING)
    called = [user("1+2?"), assistant(None, tool_calls=[CALL]), {"role": "tool", "content": "3"}, assistant("It is 3")]
    text = 't:add<end>u:1+2?<end>a:[add {"a": 1}]<end>t:3<end>a:<think></think>It is 3<end>'
    for tools in ([TOOL], '[{"type": "function", "function": {"name": "add"}}]'):
        sample = sample_of(called, tokenizer, tools)
        assert whole(sample, tokenizer) == text and learnt(sample, tokenizer) == ["<think></think>It is 3<end>"]
    sample = sample_of(called[:2], tokenizer, answers="all")
    assert learnt(sample, tokenizer) == ['<think></think>[add {"a": 1}]<end>']
    flat = [*called[:1], assistant("", tool_calls='[{"function": {"name": "add", "arguments": {"a": 1}}}]')]
    assert learnt(sample_of(flat, tokenizer), tokenizer) == ['<think></think>[add {"a": 1}]<end>']


def test_content_that_is_none_is_no_word():
    """Some templates write None where a message has calls only, some cannot read it."""
    for written in ("m.content", "m.content + ''"):
        calls = "{% for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor %}"
        tokenizer = letters("{% for m in messages %}{{ " + written + " }}" + calls + "{% endfor %}")
        assert whole(sample_of([user("Q"), assistant(None, tool_calls=[CALL])], tokenizer), tokenizer) == "Qadd"


def test_reasoning_of_the_answer_is_carried():
    tokenizer = letters(THINKING)
    for said in (assistant("A", reasoning_content="R"), assistant("<think>\nR\n</think>\n\nA")):
        assert learnt(sample_of([user("Q"), said], tokenizer), tokenizer) == ["<think>R</think>A<end>"]


NO_SYSTEM = "{% for m in messages if m.role != 'system' %}{{ m.content }}<end>{% endfor %}"


@pytest.mark.parametrize(
    ("template", "messages", "tools", "rule"),
    [
        (PLAIN, [user("Q"), assistant("", tool_calls=[CALL])], None, r"tool_calls of message 1 \(assistant\)"),
        (PLAIN, [user("Q"), assistant(None, function_call=CALL["function"])], None, "function_call of message 1"),
        (PLAIN, [user("Q"), assistant("A", reasoning_content="R")], None, "reasoning_content of message 1"),
        (PLAIN, [user("Q"), assistant("A")], [TOOL], "tool 'add'"),
        (NO_SYSTEM, [{"role": "system", "content": "Q"}, user("Q"), assistant("A")], None, "content of message 0"),
        (THINKING, [user("Q"), assistant("<think>R</think>A"), user("Q"), assistant("A")], None, "in <think> of mess"),
        ("{{ messages[-1].content.split('</think>')[-1] }}", [assistant("<think>R</think>A")], None, "in <think> of"),
    ],
)
def test_what_the_template_leaves_out_is_refused(template, messages, tools, rule):
    with pytest.raises(ValueError, match=rf"the chat template leaves out the .*{rule}"):
        sample_of(messages, letters(template), tools, answers="all")


def test_reasoning_of_earlier_answers_is_left_out_aloud(caplog):
    tokenizer = letters(THINKING)
    talk = [user("Q1"), assistant("A1", reasoning_content="R"), user("Q2"), assistant("A2")]
    with caplog.at_level(logging.WARNING, logger="dllm"):
        for _ in range(2):
            assert learnt(sample_of(talk, tokenizer), tokenizer) == ["<think></think>A2<end>"]
    assert caplog.messages == [
        "the chat template leaves out the reasoning_content of answers that are not learnt; the first is in the row "
        "that begins with 'Q1'"
    ]


def test_a_template_that_refuses():
    refusing = letters("{{ raise_exception('no tools here') }}")
    with pytest.raises(ValueError, match=r"refuses the conversation: no tools here \(in the row that begins with 'Q1'"):
        sample_of(TALK, refusing)
    with pytest.raises(ValueError, match="chat_template is not set"):
        sample_of(TALK, letters(None))


def test_answers_are_last_or_all():
    with pytest.raises(ValueError, match="answers must be one of last, all, got 'first'"):
        sample_of(TALK, letters(), answers="first")
    with pytest.raises(ValueError, match="mask_prompt_loss=False learns all messages"):
        sample_of(TALK, letters(), answers="all", mask_prompt_loss=False)


@pytest.mark.parametrize("make", [letters, slow_letters])
def test_text_that_spells_the_mask_is_text(make):
    tokenizer = make()
    sample = sample_of([user("what is <mask>?"), assistant("<mask> is <end> it")], tokenizer)
    assert tokenizer.mask_token_id not in sample["input_ids"]
    assert whole(sample, tokenizer) == "u:what is <mask>?<end>a:<mask> is <end> it<end>"
    assert learnt(sample, tokenizer) == ["<mask> is <end> it<end>"]
    assert sample["input_ids"].count(tokenizer.eos_token_id) == 3


def test_an_answer_that_spells_its_end_is_told(caplog):
    tokenizer = letters()
    with caplog.at_level(logging.WARNING, logger="dllm"):
        sample_of([user("Q <end>"), assistant("A<end>")], tokenizer)
        assert not caplog.messages
        sample_of([user("Q"), assistant("A <end> B")], tokenizer)
    assert caplog.messages == [
        "an answer has '<end>' in it, at which a model that learns it ends its own answers; the first is in the row "
        "that begins with 'Q'"
    ]


def test_parts_of_content_are_one_text():
    tokenizer = letters()
    parts = [{"type": "text", "text": "Q"}, {"type": "text", "text": "?"}]
    assert whole(sample_of([user(parts), assistant("A")], tokenizer), tokenizer) == "u:Q?<end>a:A<end>"
    with pytest.raises(ValueError, match=r"content must be text, got .*image_url"):
        sample_of([user([{"type": "image_url", "image_url": "x"}]), assistant("A")], tokenizer)
