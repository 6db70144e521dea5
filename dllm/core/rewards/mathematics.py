r"""Reward for answers of MATH: equal after the normalisation of LaTeX by the data set's authors.

Source: Hendrycks et al., arXiv:2103.03874, whose rules are strings only: 1/2, 0.5, \frac12 and \dfrac{1}{2} are equal,
but 0.25 and \frac14 are not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dllm.core.rewards.completions import texts_of
from dllm.core.rewards.registry import register_reward

_BOXES = ("\\boxed", "\\fbox")
_REMOVED = ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$")
_UNIT = "\\text{ "
_WHOLE = r"(0|-?[1-9][0-9]*)"
_RATIO = re.compile(f"{_WHOLE}/{_WHOLE}")


@register_reward("correctness_math")
def correctness_math_reward(completions: Sequence[Any], *, answer: Sequence[str], **columns: Any) -> list[float]:
    r"""2.0 if the last `\boxed{...}` of the completion equals that of the right answer, after MATH's normalisation.

    A text without a box counts as a whole: 42 is right, `<answer>42</answer>` is not.

    Args:
        completions: texts or lists of messages.
        answer: the right answers, or solutions with the answer in a box.

    Example:
        >>> right = [r"Hence \boxed{\frac{1}{2}}."] * 3
        >>> correctness_math_reward([r"<answer>\boxed{0.5}</answer>", r"\boxed{\frac12}", r"\boxed{2}"], answer=right)
        [2.0, 2.0, 0.0]
    """
    return [2.0 * are_equal(text, right) for text, right in zip(texts_of(completions), answer, strict=True)]


def are_equal(text: str, right: str) -> bool:
    """Whether the answers of two texts are equal after normalisation, or as they stand if one has no normal form."""
    found, wanted = boxed(text), boxed(right)
    try:
        return normalised(found) == normalised(wanted)
    except ValueError:
        return found == wanted


def boxed(text: str) -> str:
    r"""The content of the last `\boxed{...}` or `\fbox{...}`; the whole text if there is none.

    Example:
        >>> boxed(r"so $\boxed{\frac{1}{2}}$."), boxed(r"so $\boxed 5$"), boxed("5")
        ('\\frac{1}{2}', '5', '5')
    """
    command = next((command for command in _BOXES if command in text), None)
    if command is None:
        return text
    content = text.rpartition(command)[2]
    if content.startswith(" "):
        return content[1:].partition("$")[0]
    if not content.startswith("{"):
        return text
    depth = 0
    for brace in re.finditer(r"[{}]", content):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return content[1 : brace.start()]
    return text


def normalised(answer: str) -> str:
    r"""The normal form of an answer of MATH.

    Raises:
        ValueError: it has none, because it ends in a command that needs something behind it, or has several units.

    Example:
        >>> [normalised(answer) for answer in (r"x = \dfrac12", "0.5", "3/4", r"90^\circ", r"5\text{ cm}")]
        ['\\frac{1}{2}', '\\frac{1}{2}', '\\frac{3}{4}', '90', '5']
    """
    answer = answer.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    answer = answer.replace("tfrac", "frac").replace("dfrac", "frac")
    for removed in _REMOVED:
        answer = answer.replace(removed, "")
    answer = _without_unit(answer).replace("\\%", "")
    answer = answer.replace(" .", " 0.").replace("{.", "{0.")
    answer = f"0{answer}" if answer.startswith(".") else answer
    name, equals, value = answer.partition("=")
    if equals and "=" not in value and len(name) <= 2:
        answer = value
    answer = _with_braces_of_roots(answer).replace(" ", "")
    answer = _with_braces_of_fractions(answer)
    if answer == "0.5":
        return "\\frac{1}{2}"
    ratio = _RATIO.fullmatch(answer)
    return f"\\frac{{{ratio[1]}}}{{{ratio[2]}}}" if ratio else answer


def _without_unit(answer: str) -> str:
    value, unit, more = answer.partition(_UNIT)
    if unit and _UNIT in more:
        raise ValueError(f"an answer must have at most one unit, got {answer!r:.200}")
    return value


def _with_braces_of_roots(answer: str) -> str:
    r"""\sqrt3 becomes \sqrt{3}."""
    first, *roots = answer.split("\\sqrt")
    if "" in roots:
        raise ValueError(f"a root must have something behind it, got {answer!r:.200}")
    return first + "".join(f"\\sqrt{root}" if root[0] == "{" else f"\\sqrt{{{root[0]}}}{root[1:]}" for root in roots)


def _with_braces_of_fractions(answer: str) -> str:
    r"""\frac12 becomes \frac{1}{2}, and \frac1{72} becomes \frac{1}{72}."""
    first, *fractions = answer.split("\\frac")
    if "" in fractions:
        raise ValueError(f"a fraction must have something behind it, got {answer!r:.200}")
    made = [first]
    for text in fractions:
        if text[0] == "{":
            made.append(f"\\frac{text}")
        elif len(text) < 2:
            return answer
        elif text[1] == "{":
            made.append(f"\\frac{{{text[0]}}}{text[1:]}")
        else:
            made.append(f"\\frac{{{text[0]}}}{{{text[1]}}}{text[2:]}")
    return "".join(made)
