"""Questions and answers: `dllm.demo.answer` and the command `dllm generate`."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from dllm import cli
from dllm.demo.answer import answer, decode, encode
from dllm.demo.shipped import load_shipped

QUICK = {"gen_length": 16, "steps": 4, "block_length": 16, "remasking": "low_confidence"}
FAST = ["--gen-length", "16", "--steps", "4", "--device", "cpu"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shipped():
    return load_shipped()


class TestAnswer:
    def test_sums(self, shipped):
        replies, stats = answer(*shipped, ["What is 12 * 4?", "48 + 24 = ?"], **{**QUICK, "steps": 16})
        assert replies == ["12 * 4 = 48.", "48 + 24 = 72."]
        assert stats.forwards == 16

    @pytest.mark.parametrize("question", ["Zxqv frobs 98765?", "日本語?", "😀", "a" * 100, "[MASKED] words"])
    def test_words_it_never_saw(self, shipped, question):
        (reply,), _ = answer(*shipped, [question], **QUICK)
        assert isinstance(reply, str)

    def test_an_answer_is_the_same_alone_and_in_company(self, shipped):
        questions = ["What is 12 * 4?", "Hello", "Tell me something long about nothing in particular, please."]
        together, _ = answer(*shipped, questions, **QUICK)
        assert together == [answer(*shipped, [question], **QUICK)[0][0] for question in questions]

    @pytest.mark.parametrize(
        ("questions", "error", "rule"),
        [
            ([], ValueError, "at least one question, got none"),
            ([""], ValueError, "got an empty text"),
            (["Hello", " \n"], ValueError, "got an empty text"),
            ("Hello", TypeError, "expected a list of texts, got 'Hello'"),
            ([3], TypeError, "expected a list of texts"),
            (["word " * 200], ValueError, r"at most 176 tokens, template included, got \d{3}"),
            (["What is [MASK]?"], ValueError, "mask token"),
        ],
    )
    def test_bad_questions(self, shipped, questions, error, rule):
        with pytest.raises(error, match=rule):
            answer(*shipped, questions, **QUICK)

    def test_longest_prompt(self, shipped):
        model, tokenizer = shipped
        room = 176
        fill = room - encode(tokenizer, ["7"])[0].shape[1]  # a number is a token
        assert answer(model, tokenizer, ["7" + " 7" * fill], **QUICK)[1].forwards == 4
        with pytest.raises(ValueError, match="at most 176 tokens, template included, got 177"):
            answer(model, tokenizer, ["7" + " 7" * (fill + 1)], **QUICK)

    def test_padding_is_on_the_left(self, shipped):
        tokens, attention = encode(shipped[1], ["Hello", "Hello, how are you?"])
        assert attention[0].tolist() == sorted(attention[0].tolist())
        assert not attention[0].all() and attention[1].all()
        assert torch.equal(tokens[0, -1], tokens[1, -1])

    def test_text_ends_where_the_answer_does(self, shipped):
        tokenizer = shipped[1]
        end = tokenizer.eos_token_id
        assert decode(tokenizer, [*tokenizer("Yes.").input_ids, end, *tokenizer("No.").input_ids]) == "Yes."
        assert decode(tokenizer, [end, end]) == ""


class TestCommand:
    def test_only_the_answer_is_on_stdout(self, capsys):
        assert cli.main(["generate", "What is 12 * 4?", "--gen-length", "16", "--device", "cpu"]) == 0
        out, err = capsys.readouterr()
        assert out == "12 * 4 = 48.\n"
        assert "in 16 forward passes" in err

    def test_question_from_stdin(self, capsys, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.StringIO("What is 12 * 4?\n"))
        assert cli.main(["generate", "-", "--gen-length", "16", "--device", "cpu"]) == 0
        assert capsys.readouterr().out == "12 * 4 = 48.\n"

    def test_steps_are_shown(self, capsys):
        assert cli.main(["generate", "Hello", "--live", *FAST]) == 0
        shown = capsys.readouterr().err
        assert "step 4 of 4: · masked, (tentative), committed" in shown
        assert "·" in shown and "Hello |" in shown

    @pytest.mark.parametrize(
        ("arguments", "rule"),
        [
            (["", *FAST], "empty"),
            (["word " * 200, *FAST], "at most 176 tokens"),
            (["Hello", *FAST, "--steps", "0"], "steps must be at least 1, got 0"),
            (["Hello", *FAST, "--block-length", "5"], "multiple of block_length"),
            (
                ["Hello", *FAST, "--device", "toaster"],
                "expected a device of this machine, such as cpu or cuda, got 'toaster'",
            ),
            (["Hello", *FAST, "--model", "/no/such/folder"], "/no/such/folder"),
        ],
    )
    def test_what_makes_no_sense(self, arguments, rule, capsys):
        assert cli.main(["generate", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert rule in err and err.startswith("dllm generate: ") and len(err.splitlines()) < 4

    def test_interrupted(self, monkeypatch, capsys):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("dllm.demo.generate.answer", interrupt)
        assert cli.main(["generate", "Hello", *FAST]) == 130
        assert "interrupted" in capsys.readouterr().err
