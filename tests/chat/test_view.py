"""What one sees of the steps: kinds of token, their text, frames, lines, a terminal, and when rich is not there."""

from __future__ import annotations

import importlib.util
import io
import logging
import math

import pytest
import torch
from rich.console import Console

from dllm.chat import display
from dllm.chat.display import open_view
from dllm.chat.film import Film, film_from_histories
from dllm.chat.live import LiveView
from dllm.chat.tokens import COMMITTED, GIVEN, MASKED, NEW, TENTATIVE, pieces
from dllm.chat.view import PlainView
from dllm.demo.shipped import load_shipped
from dllm.fast import Step

NOTHING = torch.full((1, 4), math.nan)


def steps() -> list[Step]:
    """Two steps on one row: a prompt token, then three to be filled, the last in another block."""
    first = torch.tensor([[1, 2, 0, 0]]), torch.tensor([[1, 2, 3, 0]])
    second = torch.tensor([[1, 2, 3, 0]]), torch.tensor([[1, 2, 3, 0]])
    sure = torch.tensor([[math.nan, -0.1, -0.2, math.nan]]), torch.tensor([[math.nan, math.nan, -0.3, math.nan]])
    return [
        Step(*first, sure[0], block=0, blocks=1, step=0, steps=2),
        Step(*second, sure[1], block=0, blocks=1, step=1, steps=2),
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestFilm:
    def test_each_step_makes_a_frame_of_the_columns_filmed(self):
        film = Film(0, [slice(1, 4)])
        for step in steps():
            film.add(step.canvas, step.tentative, step.confidence)
        assert [frame.states for frame in film.rows[0]] == [
            [MASKED, MASKED, MASKED],
            [NEW, TENTATIVE, MASKED],
            [COMMITTED, NEW, MASKED],
        ]
        assert [frame.tokens for frame in film.rows[0]] == [[0, 0, 0], [2, 3, 0], [2, 3, 0]]

    def test_a_committed_token_keeps_the_confidence_it_was_committed_with(self):
        film = Film(0, [slice(1, 4)])
        for step in steps():
            film.add(step.canvas, step.tentative, step.confidence)
        assert film.rows[0][-1].confidence == pytest.approx([-0.1, -0.3, None])

    def test_what_is_changed_after_it_was_committed_is_new_again(self):
        film = Film(0, [slice(0, 1)])
        kinds = [film.add(torch.tensor([[token]]))[0].states[0] for token in (2, 2, 3)]
        assert kinds == [NEW, COMMITTED, NEW]

    def test_counts(self):
        film = Film(0, [slice(0, 4)], torch.tensor([[1, 0, 0, 0]]))
        (frame,) = film.add(torch.tensor([[1, 2, 0, 0]]))
        assert (frame.committed, frame.generated) == (1, 3)

    def test_histories_without_their_padding(self, words):
        start, end = torch.tensor([[4, 1, 0, 4], [1, 0, 0, 0]]), torch.tensor([[4, 1, 2, 4], [1, 2, 3, 4]])
        film = film_from_histories(words, [start, end])
        assert [row[-1].tokens for row in film.rows] == [[1, 2], [1, 2, 3, 4]]
        assert film.rows[0][-1].states == [GIVEN, NEW]

    def test_rows_that_grow_and_shrink(self, words):
        """A token keeps its state where it moves to; what is put in is new, and padding (4) is not shown."""
        history = [[[1, 0, 0], [2, 0, 0]], [[1, 2, 0, 0], [2, 4, 4, 4]], [[1, 3, 2, 0, 0], [2, 3, 4, 4, 4]]]
        film = film_from_histories(words, list(map(torch.tensor, history)))
        first, second = film.rows
        assert [frame.tokens for frame in first] == [[1, 0, 0], [1, 2, 0, 0], [1, 3, 2, 0, 0]]
        assert first[1].states == [GIVEN, NEW, MASKED, MASKED]
        assert first[2].states == [GIVEN, NEW, COMMITTED, MASKED, MASKED]
        assert [frame.tokens for frame in second] == [[2, 0, 0], [2], [2, 3]] and second[2].states == [GIVEN, NEW]

    @pytest.mark.parametrize(
        ("histories", "error", "rule"),
        [
            ([], ValueError, "at least one step, got none"),
            ([[1, 2]], TypeError, "tensors of token ids"),
            ([torch.zeros(n, 3, dtype=torch.int64) for n in (1, 2)], ValueError, "one number of rows"),
        ],
    )
    def test_what_is_no_history(self, words, histories, error, rule):
        with pytest.raises(error, match=rule):
            film_from_histories(words, histories)


class TestPieces:
    def test_words_stand_apart_and_pieces_together(self, words):
        assert pieces(words, [1, 2, 3, 0, 2, 4]) == [" hello", " world", "ly", " ·", " world", "∎"]

    def test_bytes_of_one_character_appear_together(self):
        _, tokenizer = load_shipped()
        ids = tokenizer("é😀").input_ids
        found = pieces(tokenizer, ids)
        assert "".join(found) == " é😀"
        assert found.count("") == len(ids) - len(" é😀")

    def test_long_texts_are_decoded_window_by_window(self):
        """The windows leave no trace: joined, the pieces are what the tokenizer decodes at once."""
        _, tokenizer = load_shipped()
        ids = tokenizer("Lily runs 12 miles, é😀 and naïve 日本語 words follow; " * 6).input_ids
        found = pieces(tokenizer, ids)
        assert len(found) == len(ids) > 100
        assert "".join(found).strip() == tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()


class TestViews:
    def test_lines(self, words):
        out = io.StringIO()
        with PlainView(words, ["hello?"], Film(0, [slice(-3, None)]), out) as view:
            for step in steps():
                view.show(step)
        assert out.getvalue().splitlines() == [
            "step 1 of 2: · masked, (tentative), committed",
            "  hello? | world (ly) ·",
            "step 2 of 2: · masked, (tentative), committed",
            "  hello? | world ly ·",
        ]

    def test_frames(self, words):
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, width=80, color_system=None)
        with LiveView(words, ["hello?"], Film(0, [slice(-3, None)]), console, pace=1e-6) as view:
            for step in steps():
                view.show(step)
        text = out.getvalue()
        assert "world·" not in text and "worldly ·" in text
        assert "step 1 of 2" in text and "step 2 of 2" in text and "2 of 3 tokens" in text and "tokens/s" in text
        assert text.count("╭") == text.count("╰") >= 2

    def test_kinds_of_token_have_colors_of_their_own(self, words):
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, width=80, color_system="standard")
        with LiveView(words, ["hello?"], Film(0, [slice(-3, None)]), console, pace=1e-6) as view:
            view.show(steps()[0])
        new, tentative, masked = "\033[1;32m world", "\033[3;33mly", "\033[90m ·"
        assert new in out.getvalue() and tentative in out.getvalue() and masked in out.getvalue()

    def test_the_last_state_is_drawn_even_if_the_schedule_was_longer(self, words):
        out = io.StringIO()
        with PlainView(words, ["hello?"], Film(0, [slice(-3, None)]), out) as view:
            view.show(steps()[0]._replace(steps=100))
            assert out.getvalue() == ""
        assert "step 1 of 100" in out.getvalue()

    def test_titles_are_no_markup(self, words):
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, width=80, color_system=None)
        with LiveView(words, ["[b]old"], Film(0, [slice(-3, None)]), console) as view:
            view.show(steps()[1])
        assert "[b]old" in out.getvalue()

    def test_a_terminal_gets_frames_all_else_lines(self, words, monkeypatch):
        monkeypatch.setenv("TERM", "xterm")
        film = Film(0, [slice(-3, None)])
        assert isinstance(open_view(words, ["?"], film, Terminal()), LiveView)
        assert isinstance(open_view(words, ["?"], film, io.StringIO()), PlainView)
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(open_view(words, ["?"], film, Terminal()), PlainView)

    def test_without_rich_a_terminal_gets_lines_and_one_word_why(self, words, monkeypatch, caplog):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        display.has_rich.cache_clear()
        try:
            with caplog.at_level(logging.WARNING, logger="dllm"):
                for _ in range(2):
                    assert isinstance(open_view(words, ["?"], Film(0, [slice(0, 1)]), Terminal()), PlainView)
        finally:
            display.has_rich.cache_clear()
        assert [record.message for record in caplog.records] == [
            "rich is not installed, so steps are shown as plain lines: pip install 'dllm[chat]'"
        ]
