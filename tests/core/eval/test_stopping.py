"""Where an answer stops, on token lists whose text is known."""

import pytest

from dllm.core.eval.stopping import Answer, Stopping
from tests.causal_models import EOS
from tests.core.eval.letters import END_OF_TURN, LetterTokenizer, piece

# tokens by their text: one, two and three letters
TOKENS = {piece(token): token for token in reversed(range(5, 97)) if token not in (EOS, END_OF_TURN)}


def tokens(*texts):
    return [TOKENS[text] for text in texts]


def read(row, until=(), tokenizer=None, **options):
    stopping = Stopping(tokenizer or LetterTokenizer(), until, **options)
    answer = stopping.read(row)
    over = [stopping.is_over(row[:n]) for n in range(len(row) + 1)]
    assert over == sorted(over)  # an answer that is over stays so, and the call that ends a row agrees
    if over[-1]:
        assert all(stopping.read(row[:n]) == answer for n in range(over.index(True), len(row) + 1))
        assert answer.tokens == over.index(True)
    else:
        assert answer.tokens == len(row)
    return answer


def two(text):
    return next(t for t in TOKENS if len(t) == 2 and t.startswith(text))


class TestStopStrings:
    def test_inside_a_token(self):
        three = next(text for text in TOKENS if len(text) == 3 and len(set(text)) == 3)
        assert read(tokens(three), [three[1]]) == Answer(three[0], 1)

    def test_across_tokens(self):
        assert read(tokens("a", "b", "c", "a"), ["bc"]) == Answer("a", 3)

    def test_the_first_that_is_complete_counts(self):
        """Whatever comes later: a longer one that began before does not change a text that has ended."""
        assert read(tokens("a", "b", "c", "d"), ["abcd", "b"]) == Answer("a", 2)
        assert read(tokens("a", "b", "c", "d"), ["c", "abc"]) == Answer("", 3)

    def test_none_is_there(self):
        assert read(tokens("a", "b"), ["ba", "c"]) == Answer("ab", 2)
        assert read([], ["a"]) == Answer("", 0)

    def test_empty_ones_never_stop(self):
        assert read(tokens("a", "b"), ["", "b"]) == Answer("a", 2)
        assert read(tokens("a", "b"), [""]) == Answer("ab", 2)


class TestEnds:
    def test_end_of_sequence(self):
        assert read([*tokens("a", "b"), EOS, *tokens("c")], ["c"]) == Answer("ab", 3)
        assert read([EOS, *tokens("c")]) == Answer("", 1)

    def test_a_turn_of_one_token(self):
        tokenizer = LetterTokenizer("<turn>", turn_token=True)
        row = [*tokens("a"), END_OF_TURN, *tokens("b"), EOS]
        assert read(row, tokenizer=tokenizer) == Answer("a", 2)

    def test_a_turn_of_several_tokens(self):
        """As the tokenizer spells it, and as a model may: `[/Answer]` of BERT."""
        tokenizer = LetterTokenizer("dad")
        assert read(tokens("a", "d", "a", "d", "b"), tokenizer=tokenizer) == Answer("a", 4)
        other = tokens("a", two("d"), "b")
        text = piece(other[1])
        assert read(other, tokenizer=LetterTokenizer(text)) == Answer("a", 2)

    def test_special_tokens_are_left_out_or_kept(self):
        tokenizer = LetterTokenizer("<turn>", turn_token=True)
        row = [*tokens("a"), 1, *tokens("b"), END_OF_TURN, *tokens("c"), EOS, *tokens("d")]
        assert read(row, tokenizer=tokenizer).text == "ab"
        assert read(row, tokenizer=tokenizer, keep_special_tokens=True) == Answer("a<1>b<turn>c", 6)

    @pytest.mark.parametrize("keep", [False, True])
    def test_a_turn_that_ends_the_sequence(self, keep):
        tokenizer = LetterTokenizer("<end>", turn_token=True)
        tokenizer.eot_token_id = EOS
        assert read([*tokens("a"), EOS], tokenizer=tokenizer, keep_special_tokens=keep) == Answer("a", 2)
