"""Names of rewards, and their time limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

Reward = Callable[..., Sequence[float | None]]
_AnyReward = TypeVar("_AnyReward", bound=Reward)

DEFAULT_SECONDS = 10.0


class NamedReward(NamedTuple):
    """A reward, its name, and the seconds that one call may take; None: no limit."""

    name: str
    function: Reward
    seconds: float | None


_registry: dict[str, NamedReward] = {}


def register_reward(name: str, *, seconds: float | None = DEFAULT_SECONDS) -> Callable[[_AnyReward], _AnyReward]:
    """Decorator that gives a reward a name and a time limit, and returns the reward unchanged.

    Args:
        name: by which the reward is found and its mean is logged.
        seconds: for one call, with all its completions. A call that takes longer counts as 0.0 for each of them. With
            None the reward has no limit and runs in the process of the training: for rewards that use a GPU, or change
            variables that others read.

    Raises:
        ValueError: another reward has this name, or `seconds` is not a positive number.

    Example:
        >>> @register_reward("brevity", seconds=2.0)
        ... def brevity(completions, **columns):
        ...     return [1.0 / (1 + len(text)) for text in completions]
        >>> get_reward("brevity") is brevity
        True
    """
    if not name or not isinstance(name, str):
        raise ValueError(f"a reward's name must be text with at least one character, got {name!r}")
    if seconds is not None and not (0 < seconds < math.inf):
        raise ValueError(f"seconds of the reward {name} must be a positive number or None, got {seconds!r}")

    def register(function: _AnyReward) -> _AnyReward:
        before = _registry.get(name)
        if before is not None and _place(before.function) != _place(function):  # a notebook runs a cell again
            raise ValueError(f"the name {name!r} is taken by the reward {'.'.join(_place(before.function))}")
        _registry[name] = NamedReward(name, function, seconds)
        return function

    return register


def get_reward(name: str) -> Reward:
    """The reward of this name.

    Raises:
        ValueError: there is none; the message suggests the most similar name.

    Example:
        >>> get_reward("xmlcount")(["<answer>\\n42\\n</answer>"])
        [0.126]
        >>> get_reward("countdwn")
        Traceback (most recent call last):
        ...
        ValueError: the registry of rewards knows no 'countdwn': did you mean 'countdown'?
    """
    return named_reward(name).function


def reward_names() -> list[str]:
    """The names of all rewards, sorted.

    Example:
        >>> "countdown" in reward_names()
        True
    """
    return sorted(_registry)


def named_reward(reward: str | Reward) -> NamedReward:
    """A reward by its name, or a function with its registered name and limit, or with its own name and the default.

    Raises:
        ValueError: no reward has this name.
        TypeError: neither text nor a function.

    Example:
        >>> def brief(completions, **columns): ...
        >>> named_reward("sudoku").name, named_reward(brief)[::2]
        ('sudoku', ('brief', 10.0))
    """
    if isinstance(reward, str):
        if reward not in _registry:
            from dllm.configs import check_name  # loads transformers, which the process of the rewards does without

            check_name("the registry of rewards", reward, _registry)
        return _registry[reward]
    if not callable(reward):
        raise TypeError(f"a reward must be a name or a function of completions, got {reward!r}")
    known = next((entry for entry in _registry.values() if entry.function is reward), None)
    return known or NamedReward(_name_of(reward), reward, DEFAULT_SECONDS)


def _name_of(function: Any) -> str:
    function = getattr(function, "func", function)  # functools.partial
    return getattr(function, "__name__", type(function).__name__)


def _place(function: Any) -> tuple[str, str]:
    return getattr(function, "__module__", ""), getattr(function, "__qualname__", repr(function))
