"""Where a generated answer ends, and its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def end_sequences(tokenizer: Any) -> list[list[int]]:
    """Token sequences that end an answer: end of sequence, end of turn, and the end of turn spelled as text.

    The text of an end of turn, `eot_token`, may be several tokens: BERT-chat's `[/Answer]` is.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> [tokenizer.decode(end) for end in end_sequences(tokenizer)]
        ['[/Answer]']
    """
    single = (getattr(tokenizer, name, None) for name in ("eos_token_id", "eot_token_id"))
    turn = getattr(tokenizer, "eot_token", None)
    spelled = tokenizer(turn, add_special_tokens=False)["input_ids"] if turn else []
    ends = [(token,) for token in single if token is not None] + [tuple(spelled)]
    return [list(end) for end in dict.fromkeys(ends) if end]


def find_end(tokens: Sequence[int], ends: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Where the first of some sequences begins, and where it is over; the number of tokens twice if there is none.

    Example:
        >>> find_end([5, 6, 7, 8, 2, 9], [[2], [7, 8]]), find_end([5, 6], [[2]])
        ((2, 4), (2, 2))
    """
    tokens, first = list(tokens), {end[0] for end in ends}
    for start in (n for n, token in enumerate(tokens) if token in first):
        for end in ends:
            if tokens[start : start + len(end)] == list(end):
                return start, start + len(end)
    return len(tokens), len(tokens)


def answer_text(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of generated tokens, without special ones, up to the end of the answer.

    The model may spell the end of turn with other tokens than the tokenizer does, so the text is searched for it too.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> answer_text(tokenizer, [*tokenizer(" 42").input_ids, tokenizer.eos_token_id, 5])
        ' 42'
    """
    start, _ = find_end(tokens, end_sequences(tokenizer))
    text = tokenizer.decode(tokens[:start], skip_special_tokens=True)
    turn = getattr(tokenizer, "eot_token", None)
    return text.partition(turn)[0] if turn else text
