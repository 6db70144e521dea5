"""Texts of completions, and the answers in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

OPEN, CLOSE = "<answer>", "</answer>"


def texts_of(completions: Sequence[Any]) -> list[str]:
    """The texts of completions.

    Args:
        completions: texts, or lists of messages, of which the last counts.

    Raises:
        ValueError: a completion is neither, or has no message.

    Example:
        >>> texts_of(["4", [{"role": "assistant", "content": "5"}]])
        ['4', '5']
    """
    if isinstance(completions, (str, Mapping)) or not isinstance(completions, Sequence):
        raise ValueError(f"completions must be a list of texts or of lists of messages, got {completions!r:.200}")
    return [_text_of(completion) for completion in completions]


def last_answer(text: str) -> str:
    """The text behind the last `<answer>`, up to `</answer>`, without space around it. Without tags, the whole text.

    Example:
        >>> last_answer("<answer>41</answer> or <answer> 42 </answer>"), last_answer("42")
        ('42', '42')
    """
    return text.rpartition(OPEN)[2].partition(CLOSE)[0].strip()


def last_closed_answer(text: str) -> str | None:
    """The text between the last `<answer>` that is closed and its `</answer>`; None if there is none.

    Example:
        >>> last_closed_answer("<answer>41</answer> or <answer>42"), last_closed_answer("42")
        ('41', None)
    """
    begin = text.rfind(OPEN, 0, max(0, text.rfind(CLOSE)))
    if begin < 0:
        return None
    begin += len(OPEN)
    return text[begin : text.find(CLOSE, begin)].strip()


def _text_of(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and completion and isinstance(completion[-1], Mapping):
        content = completion[-1].get("content")
        if isinstance(content, str):
            return content
    raise ValueError(f"a completion must be text or a list of messages with text, got {completion!r:.200}")
