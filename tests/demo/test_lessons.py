"""What the bundled model is taught: its tokenizer, and the stream of conversations."""

from __future__ import annotations

import importlib.util
import itertools
import re

import jinja2
import pytest
import torch

from dllm.demo.shipped import SHIPPED, load
from dllm.demo.training import lessons, problems

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(importlib.util.find_spec("chatterbot_corpus") is None, reason="chatterbot-corpus not installed"),
]
CONVERSATION = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Fine."},
]


@pytest.fixture(scope="module")
def tokenizer():
    return lessons.vocabulary()


@pytest.fixture(scope="module")
def stream(tokenizer):
    return lessons.Lessons(tokenizer, batch_size=16, seed=0)


class TestTokenizer:
    def test_every_number_is_one_token(self, tokenizer):
        for number in range(problems.LARGEST_NUMBER + 1):
            assert len(tokenizer(str(number)).input_ids) == 1
            assert len(tokenizer(f"Then {number} hours").input_ids) == 3

    @pytest.mark.parametrize("text", ["zxqv 98765", "Größe: 3 µm", "日本語 😀", "tabs\tand  spaces", "x=12*4"])
    def test_no_text_is_outside_the_vocabulary(self, tokenizer, text):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids).removeprefix(" ") == text
        assert tokenizer.mask_token_id not in ids

    def test_template_is_bert_chats(self, tokenizer):
        """White space around a message is dropped, and an answer is begun after a question only."""
        spaced = [message | {"content": f" {message['content']}\n"} for message in CONVERSATION]
        asked = "[SYS]\nBe kind.\n[/SYS]\n\n[Question]\nHow are you?\n[/Question]\n\n[Answer]\n"
        for messages in (CONVERSATION, spaced):
            written = [
                tokenizer.apply_chat_template(messages[:n], tokenize=False, add_generation_prompt=True) for n in (2, 3)
            ]
            assert written == [asked, f"{asked}Fine.\n[/Answer]\n\n"]

    def test_line_breaks_of_the_template_cost_nothing(self, tokenizer):
        text = tokenizer.apply_chat_template(CONVERSATION[1:], tokenize=False)
        names = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
        assert [names[0], names[-1]] == ["[Question]", "[/Answer]"]
        assert not any("Ċ" in name for name in names)
        assert tokenizer.eos_token == "[/Answer]"

    def test_unknown_role(self, tokenizer):
        with pytest.raises(jinja2.TemplateError, match="expected the role system, user or assistant, got tool"):
            tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)

    def test_the_shipped_one_is_this_one(self, tokenizer):
        _, shipped = load(SHIPPED)
        assert shipped.get_vocab() == tokenizer.get_vocab()
        text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
        assert shipped.apply_chat_template(CONVERSATION, tokenize=False) == text
        assert shipped(text).input_ids == tokenizer(text).input_ids
        assert shipped.chat_template == tokenizer.chat_template
        assert (shipped.mask_token_id, shipped.eos_token_id) == (tokenizer.mask_token_id, tokenizer.eos_token_id)


class TestLessons:
    def test_a_batch_depends_on_its_number_alone(self, tokenizer, stream):
        again = lessons.Lessons(tokenizer, batch_size=16, seed=0)
        for number in (5, 2):
            for batch, same in zip(stream[number], again[number], strict=True):
                assert torch.equal(batch.tokens, same.tokens)
        assert not torch.equal(stream[1][0].tokens[:, :40], stream[2][0].tokens[:, :40])

    def test_only_the_last_answer_is_learnt(self, tokenizer, stream):
        start, end = tokenizer.convert_tokens_to_ids("[Answer]"), tokenizer.eos_token_id
        for batch in itertools.chain.from_iterable(stream[number] for number in range(lessons.LONG_EVERY)):
            assert batch.tokens.shape[1] <= lessons.MAX_LENGTH
            for tokens, answer in zip(batch.tokens, batch.answer, strict=True):
                first = int(answer.int().argmax())
                assert answer[first:].all() and not answer[:first].any()
                assert tokens[first - 1] == start  # the prompt ends where the answer begins
                assert start not in tokens[first:]
                assert tokens[-1] == end

    def test_long_histories_are_rare(self, stream):
        widths = [stream[number][0].tokens.shape[1] for number in range(2 * lessons.LONG_EVERY)]
        assert sum(width > lessons.USUAL_LENGTH for width in widths) == 2

    def test_nothing_held_out_is_taught(self, tokenizer, stream):
        """Read from the text alone, not from what made it."""
        held_out = set(problems.split_numbers()[1])
        stage = r"In the (?:first|next) (\d+) hours \w+ \w+ (\d+) \*"
        new = [as_pattern(phrasing) for phrasing in problems.HELD_OUT_PHRASINGS]
        seen = 0
        for number in range(100):
            for text in tokenizer.batch_decode([row for batch in stream[number] for row in batch.tokens.tolist()]):
                assert not any(pattern.search(text) for pattern in new)
                stages = re.findall(stage, text)
                for (hours, rate), (later_hours, later_rate) in zip(stages[::2], stages[1::2], strict=True):
                    seen += 1
                    assert problems.Numbers(*map(int, (rate, hours, later_rate, later_hours))) not in held_out
        assert seen > 1000


def as_pattern(phrasing: str) -> re.Pattern:
    """What a phrasing looks like with anything in its gaps."""
    return re.compile(r"[\w ]+".join(map(re.escape, re.split(r"{\w+}", phrasing))))


def test_patterns_recognise_their_phrasing():
    for phrasing in problems.HELD_OUT_PHRASINGS:
        problem = problems.held_out(1, phrasings=(phrasing,))[0]
        assert as_pattern(phrasing).search(problem.question)
