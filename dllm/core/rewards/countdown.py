"""Reward of Countdown: an expression of given numbers, each used once, whose value is the target."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from dllm.core.rewards.completions import last_closed_answer, texts_of
from dllm.core.rewards.registry import register_reward

LONGEST = 500  # characters of an expression; a longer one is wrong
_ALLOWED = re.compile(r"[0-9+\-*/() \t\n]+")
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


@register_reward("countdown")
def countdown_reward(
    completions: Sequence[Any], *, numbers: Sequence[Sequence[int]], target: Sequence[int], **columns: Any
) -> list[float]:
    """1.0 if the last answer is an expression of all the numbers, each used once, with the value of the target.

    0.1 if it is something else, and 0.0 without an answer. The expression is parsed, never run, and its value is exact.
    It has whole numbers, + - * / and parentheses; powers are refused, because `99**98**97` does not end.

    Args:
        completions: texts or lists of messages.
        numbers: for each completion, the numbers to use.
        target: for each completion, the value to reach.

    Example:
        >>> texts = ["<answer>2*4-3</answer>", "<answer>2+3</answer>", "5"]
        >>> countdown_reward(texts, numbers=[[2, 3, 4]] * 3, target=[5] * 3)
        [1.0, 0.1, 0.0]
    """
    return [
        _score(last_closed_answer(text), given, wanted)
        for text, given, wanted in zip(texts_of(completions), numbers, target, strict=True)
    ]


def value_of(expression: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression of whole numbers, + - * / and parentheses, and the numbers in it.

    Raises:
        ValueError: it is no such expression, has more than 500 characters, is nested too deeply, or divides by zero.

    Example:
        >>> value_of("1/2 + 3")
        (Fraction(7, 2), [1, 2, 3])
        >>> value_of("2**4")
        Traceback (most recent call last):
        ...
        ValueError: an expression must have whole numbers, + - * / and parentheses, got '2**4'
    """
    if len(expression) > LONGEST or not _ALLOWED.fullmatch(expression):
        raise _refused(expression)
    numbers: list[int] = []
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body, numbers), numbers
    except (SyntaxError, MemoryError, RecursionError, ZeroDivisionError, LookupError):
        raise _refused(expression) from None


def _score(expression: str | None, numbers: Sequence[int], target: int) -> float:
    if expression is None:
        return 0.0
    try:
        value, used = value_of(expression)
    except ValueError:
        return 0.1
    return 1.0 if value == Fraction(target) and sorted(used) == sorted(numbers) else 0.1


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    """The value of a parsed expression; its numbers are appended to `numbers`."""
    if isinstance(node, ast.Constant):
        numbers.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp):
        value = _value(node.operand, numbers)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        return _OPERATIONS[type(node.op)](_value(node.left, numbers), _value(node.right, numbers))
    raise SyntaxError("no arithmetic")


def _refused(expression: str) -> ValueError:
    return ValueError(f"an expression must have whole numbers, + - * / and parentheses, got {expression!r:.200}")
