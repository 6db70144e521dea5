"""What is said: turns, prompts that fit and that do not, settings; texts that are continued or filled."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dllm.chat.talk import Continuation, Conversation, TooLong, build_chat_inputs
from dllm.demo.answer import answer
from dllm.demo.shipped import load_shipped

pytestmark = pytest.mark.usefixtures("one_thread")
POSITIONS = 192


def say(talk, text: str) -> str:
    return talk.answer(text, talk.prompt(text)).text


class TestConversation:
    def test_answers_are_those_of_the_model_cards_loop(self, sampler, short):
        """With as many steps as tokens every schedule commits one a step, so that both must agree."""
        (expected,), _ = answer(*load_shipped(), ["What is 8 * 4?"], gen_length=8, steps=8, block_length=8)
        assert say(Conversation(sampler, short), "What is 8 * 4?") == expected

    def test_every_turn_is_seen_by_the_next(self, sampler, short):
        talk = Conversation(sampler, short)
        first = talk.prompt("Hello")
        reply = talk.answer("Hello", first).text
        second = talk.prompt("What is 8 * 4?").tokens
        written = sampler.tokenizer.decode(second)  # which drops white space beside special tokens
        assert second[: len(first.tokens)] == first.tokens
        assert written.startswith(f"[Question] Hello[/Question][Answer] {reply}[/Answer][Question] What is 8 * 4?")
        assert [message["role"] for message in talk.messages] == ["user", "assistant"]
        talk.reset()
        assert talk.messages == [] and talk.prompt("Hello").tokens == first.tokens

    def test_a_system_message_stands_first_and_stays(self, sampler, short):
        talk = Conversation(sampler, short, system="Be brief.")
        talk.reset()
        assert sampler.tokenizer.decode(talk.prompt("Hello").tokens).startswith("[SYS]")

    def test_room(self, sampler, short):
        """One number is one token: the longest question that fits, and one more."""
        talk = Conversation(sampler, short)
        fill = POSITIONS - short.max_new_tokens - len(talk.prompt("7").tokens)
        assert len(talk.prompt("7" + " 7" * fill).tokens) == POSITIONS - 8
        with pytest.raises(TooLong, match=r"a prompt of 185 tokens and the answer takes 8 more: .* room for 192"):
            talk.prompt("7" + " 7" * (fill + 1))

    def test_earlier_turns_take_room_and_are_kept(self, sampler, short):
        talk = Conversation(sampler, short)
        talk.turns = [{"role": "user", "content": "7" + " 7" * 160}, {"role": "assistant", "content": "No."}]
        before = list(talk.turns)
        with pytest.raises(TooLong, match=r"\d+ of them from earlier turns"):
            talk.prompt("And 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8?")
        assert talk.turns == before

    def test_a_limit_of_the_users_own(self, sampler, short):
        talk = Conversation(sampler, dataclasses.replace(short, max_new_tokens=None, max_length=20))
        prompt = talk.prompt("Hello")
        assert prompt.film.spans == [slice(len(prompt.tokens), 20)]
        with pytest.raises(TooLong, match="room for 20"):
            talk.prompt("7" + " 7" * 30)

    @pytest.mark.parametrize(("text", "rule"), [(" ", "got an empty text"), ("What is [MASK]?", "hold the mask token")])
    def test_no_question(self, sampler, short, text, rule):
        with pytest.raises(ValueError, match=rule):
            Conversation(sampler, short).prompt(text)

    def test_only_finished_answers_are_part_of_it(self, sampler, short):
        talk, steps = Conversation(sampler, short), []

        def stop(step):
            steps.append(step)
            if len(steps) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            talk.answer("Hello", talk.prompt("Hello"), stop)
        assert talk.messages == [] and len(steps) == 3

    def test_the_last_turn_comes_back_if_nothing_takes_its_place(self, sampler, short):
        talk = Conversation(sampler, short)
        talk.turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
        before = list(talk.turns)
        with pytest.raises(KeyboardInterrupt), talk.without_last_turn():
            assert talk.turns == []
            raise KeyboardInterrupt
        assert talk.turns == before

    def test_settings(self, sampler, short):
        talk = Conversation(sampler, short)
        talk.set(steps=4, temperature=1.0)
        assert (talk.config.steps, talk.config.temperature) == (4, 1.0) and short.steps == 8
        with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
            talk.set(steps=0)
        with pytest.raises(ValueError, match="MDLMSampler has no setting patience"):
            talk.set(patience=1)
        assert talk.config.steps == 4

    def test_a_tokenizer_without_a_template(self, sampler, monkeypatch):
        monkeypatch.setattr(sampler.tokenizer, "chat_template", None)
        with pytest.raises(ValueError, match="chat template"):
            Conversation(sampler)


class TestContinuation:
    def test_a_text_goes_on(self, sampler, short):
        text = "[Question]\nWhat is 8 * 4?\n[/Question]\n\n[Answer]\n"
        assert say(Continuation(sampler, short), text) == " 8 * 4 = 32."

    def test_blanks_are_filled(self, sampler, short):
        text = "[Question]\nWhat is 8 * 4?\n[/Question]\n\n[Answer]\n8 *[MASK] = 32."
        talk = Continuation(sampler, short)
        prompt, frames = talk.prompt(text), []
        assert talk.answer(text, prompt, lambda step: frames.extend(prompt.film.add(step.canvas))).text.endswith(
            "8 * 4 = 32."
        )
        assert frames[-1].generated == frames[-1].committed == 1

    @pytest.mark.parametrize(
        ("text", "error", "rule"),
        [
            ("", ValueError, "got an empty one"),
            ("7 " * 200, TooLong, "room for 192"),
            ("[MASK] " * 200, TooLong, "room for 192"),
        ],
    )
    def test_what_makes_no_sense(self, sampler, short, text, error, rule):
        with pytest.raises(error, match=rule):
            Continuation(sampler, short).prompt(text)

    def test_nothing_is_remembered(self, sampler, short):
        talk = Continuation(sampler, short)
        assert talk.messages == []
        with pytest.raises(ValueError, match="nothing to forget"):
            talk.reset()


def test_chat_inputs_are_lists_of_ids(sampler):
    """transformers 5 would return a dictionary with an attention mask."""
    hello = [{"role": "user", "content": "Hello"}]
    one = build_chat_inputs(sampler.tokenizer, hello, add_generation_prompt=True)
    assert build_chat_inputs(sampler.tokenizer, [hello, hello], add_generation_prompt=True) == [one, one]
    without = build_chat_inputs(sampler.tokenizer, hello, add_generation_prompt=False)
    assert one[: len(without)] == without and len(one) > len(without)
    assert all(isinstance(token, int) for token in one) and torch.tensor([one]).dtype == torch.int64
