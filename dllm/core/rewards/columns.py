"""What a reward is given and returns: the columns that it takes, and the numbers that it may return."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dllm.core.rewards.registry import NamedReward


def accepted_columns(reward: NamedReward, names: Iterable[str]) -> list[str]:
    """The columns that a reward takes: all if it has `**columns`, else those that it names.

    Raises:
        ValueError: a column that it needs is missing.

    Example:
        >>> from dllm.core.rewards.registry import named_reward
        >>> accepted_columns(named_reward("correctness"), ["prompts", "answer"])
        ['prompts', 'answer']
        >>> accepted_columns(named_reward("correctness"), ["prompts"])
        Traceback (most recent call last):
        ...
        ValueError: the reward correctness needs the column answer, got prompts
    """
    names = list(names)
    parameters = inspect.signature(reward.function).parameters.values()
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    needed = [each.name for each in named if each.default is each.empty and each.name != "completions"]
    missing = [name for name in needed if name not in names]
    if missing:
        raise ValueError(f"the reward {reward.name} needs the column {missing[0]}, got {', '.join(names) or 'none'}")
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return names
    return [name for name in names if name in {each.name for each in named}]


def checked_columns(columns: Mapping[str, Sequence[Any]], count: int) -> dict[str, list[Any]]:
    """The columns as lists, one entry for each completion.

    Raises:
        ValueError: a column is no list, or has another length.
    """
    for name, values in columns.items():
        if isinstance(values, (str, Mapping)) or not isinstance(values, Sequence):
            raise ValueError(f"the column {name} must be a list with an entry for each completion, got {values!r:.200}")
        if len(values) != count:
            raise ValueError(f"the column {name} must have {count} entries, one for each completion, got {len(values)}")
    return {name: list(values) for name, values in columns.items()}


def checked_values(name: str, values: Any, count: int) -> list[float | None]:
    """What a reward returned, as a list of floats and None.

    Raises:
        ValueError: it is no list of `count` finite numbers or None.

    Example:
        >>> checked_values("length", [1, None, True], 3)
        [1.0, None, 1.0]
        >>> checked_values("length", [1, float("nan")], 2)
        Traceback (most recent call last):
        ...
        ValueError: the reward length must return a finite number or None for each completion, got nan
    """
    if isinstance(values, (str, Mapping)) or not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        raise ValueError(f"the reward {name} must return a list with a number for each completion, got {values!r:.200}")
    if len(values) != count:
        raise ValueError(f"the reward {name} must return {count} numbers, one for each completion, got {len(values)}")
    return [_number(name, value) for value in values]


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    number = float(value) if hasattr(value, "__float__") else math.nan  # text has none
    if not math.isfinite(number):
        raise ValueError(f"the reward {name} must return a finite number or None for each completion, got {value!r}")
    return number
