"""Rewards for the form of a completion, `<reasoning>...</reasoning><answer>...</answer>`, and for equal answers.

All of them take time linear in the text, also for texts that are made to defeat a pattern.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dllm.core.rewards.completions import CLOSE, last_answer, last_closed_answer, texts_of
from dllm.core.rewards.registry import register_reward

_STRICT_BEGIN, _STRICT_MIDDLE, _STRICT_END = "<reasoning>\n", "\n</reasoning>\n<answer>\n", "\n</answer>\n"
_SOFT_BEGIN, _SOFT_MIDDLE = "<reasoning>", re.compile(r"</reasoning>\s*<answer>")


@register_reward("xmlcount")
def xmlcount_reward(completions: Sequence[Any], **columns: Any) -> list[float]:
    """0.125 for each tag on a line of its own that occurs exactly once, less 0.001 for each character after the end.

    The tags are `<reasoning>`, `</reasoning>`, `<answer>` and `</answer>`. What follows `</answer>` costs if `<answer>`
    occurs exactly once, and once more if `</answer>` does; the line break after `</answer>` is free the second time.

    Example:
        >>> xmlcount_reward(["<reasoning>\\n6 * 7\\n</reasoning>\\n<answer>\\n42\\n</answer>\\n", "42"])
        [0.5, 0.0]
    """
    return [_xmlcount(text) for text in texts_of(completions)]


@register_reward("strict_format")
def strict_format_reward(completions: Sequence[Any], **columns: Any) -> list[float]:
    """0.5 if the whole completion is reasoning and answer with every tag on a line of its own.

    Example:
        >>> strict_format_reward(["<reasoning>\\n6 * 7\\n</reasoning>\\n<answer>\\n42\\n</answer>\\n", "42"])
        [0.5, 0.0]
    """
    return [0.5 * _is_strict(text) for text in texts_of(completions)]


@register_reward("soft_format")
def soft_format_reward(completions: Sequence[Any], **columns: Any) -> list[float]:
    """0.5 if the completion begins with reasoning and an answer, with nothing but space between them.

    Example:
        >>> soft_format_reward(["<reasoning>6 * 7</reasoning> <answer>42</answer>!", "<answer>42</answer>"])
        [0.5, 0.0]
    """
    return [0.5 * _is_soft(text) for text in texts_of(completions)]


@register_reward("int")
def int_reward(completions: Sequence[Any], **columns: Any) -> list[float]:
    """0.5 if the last answer is a row of the digits 0 to 9.

    Example:
        >>> int_reward(["<answer>42</answer>", "<answer>42.0</answer>"])
        [0.5, 0.0]
    """
    answers = map(last_answer, texts_of(completions))
    return [0.5 * (answer.isascii() and answer.isdigit()) for answer in answers]


@register_reward("correctness")
def correctness_reward(completions: Sequence[Any], *, answer: Sequence[str], **columns: Any) -> list[float]:
    """2.0 if the last answer is the right one, character by character: 42.0 is not 42.

    Args:
        completions: texts or lists of messages.
        answer: the right answers.

    Example:
        >>> correctness_reward(["<answer>\\n42\\n</answer>", "<answer>42.0</answer>"], answer=["42", "42"])
        [2.0, 0.0]
    """
    texts = texts_of(completions)
    return [2.0 * (last_answer(text) == right) for text, right in zip(texts, answer, strict=True)]


@register_reward("boxed_format")
def boxed_format_reward(completions: Sequence[Any], **columns: Any) -> list[float]:
    r"""Half of two parts: 1 with answer tags, and 1 with `\boxed` in the answer, else 0.5.

    Example:
        >>> boxed_format_reward([r"<answer>\boxed{42}</answer>", "<answer>42</answer>", "42"])
        [1.0, 0.75, 0.25]
    """
    return [
        0.5 * ((last_closed_answer(text) is not None) + (1.0 if "\\boxed" in last_answer(text) else 0.5))
        for text in texts_of(completions)
    ]


def _xmlcount(text: str) -> float:
    count = 0.0
    for tag in ("<reasoning>\n", "\n</reasoning>\n"):
        count += 0.125 * (text.count(tag) == 1)
    if text.count("\n<answer>\n") == 1:
        count += 0.125
        count -= _length_behind(text, f"\n{CLOSE}\n") * 0.001
    if text.count(f"\n{CLOSE}") == 1:
        count += 0.125
        count -= (_length_behind(text, f"\n{CLOSE}") - 1) * 0.001
    return count


def _length_behind(text: str, tag: str) -> int:
    """Number of characters behind the last `tag`; of all if there is none."""
    return len(text.rpartition(tag)[2])


def _is_strict(text: str) -> bool:
    if not (text.startswith(_STRICT_BEGIN) and text.endswith(_STRICT_END)):
        return False
    # the first middle leaves the most room for the answer
    middle = text.find(_STRICT_MIDDLE, len(_STRICT_BEGIN))
    return 0 <= middle <= len(text) - len(_STRICT_END) - len(_STRICT_MIDDLE)


def _is_soft(text: str) -> bool:
    middle = _SOFT_MIDDLE.search(text, len(_SOFT_BEGIN)) if text.startswith(_SOFT_BEGIN) else None
    return middle is not None and CLOSE in text[middle.end() :]
