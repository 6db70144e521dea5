"""The text of an answer: what of it is final while tokens come, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dllm.chat.tokens import UNFINISHED, added_texts
from dllm.models.answers import end_sequences, find_end


class Cut(NamedTuple):
    """An answer up to its end.

    text: of it.
    tokens: how many tokens it takes, without those that end it; with those that spell a stop.
    ended: it has an end: an end of text or of turn, or a stop.
    """

    text: str
    tokens: int
    ended: bool


class AnswerText:
    """Decodes the tokens of an answer.

    Args:
        tokenizer: of the model.
        stops: texts that end an answer, without being part of it. The one that is complete first counts, so that more
            tokens cannot change where an answer ends.
        strip: leave out white space at both ends.
        fills: the tokens fill masks between given ones, so no end of text ends them.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> text, tokens = AnswerText(tokenizer, stops=["="], strip=True), tokenizer("6 * 7 = 42").input_ids
        >>> text.cut(tokens)
        Cut(text='6 * 7', tokens=4, ended=True)
        >>> text.committed(tokens[:3])
        '6 * 7'
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (), *, strip: bool = False, fills: bool = False):
        self.tokenizer, self.stops, self.strip = tokenizer, list(stops), strip
        # an end of turn of several tokens is looked for in the text: a stop may stand in it, and be complete before
        self.ends = [] if fills else [end for end in end_sequences(tokenizer) if len(end) == 1]
        turn = None if fills else getattr(tokenizer, "eot_token", None)
        self.marks = [*self.stops, turn] if turn else self.stops

    def cut(self, tokens: Sequence[int]) -> Cut:
        """The answer that all tokens make."""
        tokens = list(tokens)
        end, _ = find_end(tokens, self.ends)
        text = self._decoded(tokens[:end])
        place = self._mark(text)
        if place is None:
            return Cut(self._stripped(text), end, end < len(tokens))
        return Cut(self._stripped(text[: place[0]]), self._tokens_for(tokens[:end], place[1]), True)

    def committed(self, tokens: Sequence[int]) -> str:
        """What more tokens cannot change any more of the text, where these are the first ones."""
        return self._stripped(self._final(list(tokens)))

    def is_over(self, tokens: Sequence[int]) -> bool:
        """Whether a stop stands in the text of tokens that are final."""
        if not self.stops:
            return False
        end, _ = find_end(list(tokens), self.ends)
        return self._mark(self._decoded(list(tokens)[:end]).rstrip(UNFINISHED)) is not None

    def released(self, tokens: Sequence[int], texts: Sequence[str]) -> int:
        """Of how many tokens the text is final, where these are the first ones and `texts` what each of them adds."""
        length, released = len(self._final(list(tokens))), 0
        for text in texts:
            length -= len(text)
            if length < 0:
                break
            released += 1
        return released

    def texts(self, tokens: Sequence[int]) -> list[str]:
        """What each token adds to the text, which is neither cut nor stripped."""
        return added_texts(self.tokenizer, tokens, skip_special_tokens=True)

    def _final(self, tokens: list[int]) -> str:
        """As :meth:`committed`, not stripped."""
        end, _ = find_end(tokens, self.ends)
        text = self._decoded(tokens[:end])
        if end == len(tokens):
            text = text.rstrip(UNFINISHED)
        if (place := self._mark(text)) is not None:
            return text[: place[0]]
        if end < len(tokens):
            return text
        return text[: len(text) - _begun(text, self.marks)]

    def _decoded(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _stripped(self, text: str) -> str:
        return text.strip() if self.strip else text

    def _mark(self, text: str) -> tuple[int, int] | None:
        """Where the stop that is complete first begins and ends."""
        found = [(text.find(mark) + len(mark), text.find(mark)) for mark in self.marks if mark in text]
        return min(found)[::-1] if found else None

    def _tokens_for(self, tokens: list[int], length: int) -> int:
        """The fewest tokens whose text has at least `length` characters."""
        low, high = 0, len(tokens)
        while low < high:
            middle = (low + high) // 2
            if len(self._decoded(tokens[:middle]).rstrip(UNFINISHED)) >= length:
                high = middle
            else:
                low = middle + 1
        return low


def _begun(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of a mark.

    Example:
        >>> _begun("yes, sto", ["stop", "tot"]), _begun("yes", ["no"])
        (3, 0)
    """
    longest = max(map(len, marks), default=0)
    for count in range(min(len(text), longest - 1), 0, -1):
        if any(mark.startswith(text[-count:]) for mark in marks):
            return count
    return 0
