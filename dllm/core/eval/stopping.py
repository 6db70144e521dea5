"""Where the text of an answer stops: at the end of the sequence, at the end of the turn, before a stop string."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dllm.models.answers import end_sequences, find_end


class Answer(NamedTuple):
    """What generated tokens say.

    text: up to where it stops.
    tokens: how many tokens were needed for it, those that end it included.
    """

    text: str
    tokens: int


class Stopping:
    """Reads answers from generated tokens.

    An answer stops before the first token that ends the sequence or the turn, and its text before the stop string that
    is complete first. A stop string may span tokens and may begin or end inside one. So the text of a row does not
    depend on how many tokens it has after that.

    Args:
        tokenizer: of the model, with an `eos_token_id`; `eot_token_id` and `eot_token` are used where it has them.
        until: stop strings; empty ones never stop.
        keep_special_tokens: the text keeps special tokens, also the one that ends a turn, up to the end of the
            sequence.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> Stopping(tokenizer, ["4 ="]).read(tokenizer(" 12 * 4 = 48").input_ids)
        Answer(text=' 12 * ', tokens=4)
    """

    def __init__(self, tokenizer: Any, until: Iterable[str] = (), *, keep_special_tokens: bool = False):
        self.tokenizer, self.keep_special_tokens = tokenizer, keep_special_tokens
        turn, turn_token = getattr(tokenizer, "eot_token", None), getattr(tokenizer, "eot_token_id", None)
        keeps_turn = keep_special_tokens and turn_token not in (None, tokenizer.eos_token_id)
        self.ends = [end for end in end_sequences(tokenizer) if not (keeps_turn and end == [turn_token])]
        # the model may spell the end of a turn with other tokens than the tokenizer does
        spelled = [turn] if turn and turn_token is None else []
        self.until = tuple(dict.fromkeys(stop for stop in [*until, *spelled] if stop))

    def is_over(self, tokens: Sequence[int]) -> bool:
        """Whether an answer that begins with these tokens has stopped, whatever follows them."""
        start, _ = find_end(tokens, self.ends)
        return start < len(tokens) or self._stops(tokens)

    def read(self, tokens: Sequence[int]) -> Answer:
        """The answer in generated tokens, from the first one on."""
        end, over = find_end(tokens, self.ends)
        text = self._decode(tokens[:end])
        start = self._first_stop(text)
        if start is None:
            return Answer(text, over)
        return Answer(text[:start], bisect.bisect_left(range(end), True, key=lambda n: self._stops(tokens[:n])))

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=not self.keep_special_tokens)

    def _stops(self, tokens: Sequence[int]) -> bool:
        return bool(self.until) and self._first_stop(self._decode(tokens)) is not None

    def _first_stop(self, text: str) -> int | None:
        """Where the stop string begins that is complete first; of several that end together, the longest."""
        found = [(start + len(stop), start) for stop in self.until if (start := text.find(stop)) >= 0]
        return min(found)[1] if found else None
