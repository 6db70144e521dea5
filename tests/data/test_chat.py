"""Conversations as token ids."""

import pytest

from dllm.data.chat import default_sft_map_fn
from dllm.demo.shipped import load_shipped
from dllm.models.families import BERT_CHAT

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "What is 12 * 4?"},
    {"role": "assistant", "content": "12 * 4 = 48."},
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_shipped()[1]


def test_the_template_is_that_of_the_model_card(tokenizer):
    expected = (
        "[SYS]\nBe brief.\n[/SYS]\n\n[Question]\nHello\n[/Question]\n\n[Answer]\nHi\n[/Answer]\n\n"
        "[Question]\nWhat is 12 * 4?\n[/Question]\n\n[Answer]\n12 * 4 = 48.\n[/Answer]\n\n"
    )
    assert tokenizer.apply_chat_template(TALK, tokenize=False, chat_template=BERT_CHAT) == expected


def test_only_the_last_answer_has_labels(tokenizer):
    sample = default_sft_map_fn({"messages": TALK}, tokenizer=tokenizer)
    start = sample["prompt_len"]
    assert sample["labels"][:start] == [-100] * start
    assert sample["labels"][start:] == sample["input_ids"][start:]
    answer, end = sample["input_ids"][start:-1], sample["input_ids"][-1]
    assert tokenizer.decode(answer).strip() == "12 * 4 = 48." and end == tokenizer.eos_token_id
    assert "What is 12 * 4?" in tokenizer.decode(sample["input_ids"][:start])


def test_the_prompt_is_learnt_on_request(tokenizer):
    sample = default_sft_map_fn({"messages": TALK}, tokenizer=tokenizer, mask_prompt_loss=False)
    assert sample == {"input_ids": sample["input_ids"], "labels": sample["input_ids"]}


@pytest.mark.parametrize(
    ("messages", "rule"),
    [
        (None, "list of messages with at least one in it, got None"),
        ([], "at least one"),
        ("Hello", "list of messages"),
        ([{"role": "user"}], "a role and a content"),
        (["Hello"], "a role and a content"),
        ([{"role": "robot", "content": "x"}], "system, user or assistant, got 'robot'"),
        ([{"role": "assistant", "content": None}], "content must be text, got None"),
        (TALK[:2], "last message must be the assistant's, got the role 'user'"),
    ],
)
def test_what_is_no_conversation(tokenizer, messages, rule):
    with pytest.raises(ValueError, match=rule):
        default_sft_map_fn({"messages": messages}, tokenizer=tokenizer)
