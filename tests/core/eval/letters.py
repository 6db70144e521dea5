"""A tokenizer for the tiny random models: tokens of one to three letters of four, so that short stop strings turn up in
random text, inside tokens and across them."""

from __future__ import annotations

from tests.causal_models import EOS
from tests.models import FIRST_WORD, MASK_ID, PAD_ID

END_OF_TURN = 41
LETTERS = "abcd"


def piece(token: int) -> str:
    """The text of an ordinary token."""
    digits = (LETTERS[token % 4], LETTERS[token // 4 % 4], LETTERS[token // 16 % 4])
    return "".join(digits[: 1 + token % 3])


class LetterTokenizer:
    """Special tokens have names in brackets, and a token below the first word is special.

    turn: text of the end of turn; None: there is none. turn_token: whether it is the token 41.
    """

    mask_token_id, eos_token_id, pad_token_id = MASK_ID, EOS, PAD_ID

    def __init__(self, turn: str | None = None, *, turn_token: bool = False):
        self.eot_token, self.eot_token_id = turn, END_OF_TURN if turn_token else None
        self.special = {token: f"<{token}>" for token in range(FIRST_WORD)} | {EOS: "<end>"}
        if turn_token:
            self.special[END_OF_TURN] = turn

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """The end of turn alone is ever encoded: letter by letter, by the first token of one letter."""
        single = {piece(token): token for token in range(96, FIRST_WORD, -1) if len(piece(token)) == 1}
        return {"input_ids": [self.eot_token_id] if self.eot_token_id else [single[letter] for letter in text]}

    def decode(self, tokens: list[int], skip_special_tokens: bool = False) -> str:
        found = (self.special.get(token, "" if token in self.special else piece(token)) for token in tokens)
        if skip_special_tokens:
            found = (piece(token) for token in tokens if token not in self.special)
        return "".join(found)
