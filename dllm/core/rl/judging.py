"""Rewards of completions: several functions with weights, called as TRL calls them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Judge:
    """Rewards with their weights.

    Args:
        rewards: one or several: names of registered rewards, or functions.
        weights: one for each reward; 1 each if None.

    Raises:
        TypeError, ValueError: no reward, one that is neither a name nor a function, an unknown name, two of one name,
            or weights of another number.

    Example:
        >>> def brevity(completions, **columns):
        ...     return [-len(completion) for completion in completions]
        >>> judge = Judge(brevity)
        >>> judge([{"prompt": "Hello"}], ["Hi"])
        tensor([[-2.]], dtype=torch.float64)
    """

    def __init__(self, rewards: str | Callable | Sequence[str | Callable], weights: Sequence[float] | None = None):
        given = [rewards] if isinstance(rewards, str) or callable(rewards) else list(rewards)
        if not given:
            raise ValueError("reward_funcs must name at least one reward, got none")
        self.rewards = [_reward(one) for one in given]
        self.names = [getattr(one, "__name__", type(one).__name__) for one in self.rewards]
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"the rewards of a run must have different names, got {', '.join(self.names)}")
        weights = [1.0] * len(given) if weights is None else [float(weight) for weight in weights]
        if len(weights) != len(given) or not all(map(math.isfinite, weights)):
            raise ValueError(f"reward_weights must be {len(given)} finite numbers, one for each reward, got {weights}")
        self.weights = torch.tensor(weights, dtype=torch.float64)

    def __call__(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> Tensor:
        """The rewards of texts, float64 [n, rewards]; NaN where a reward gave None.

        Args:
            rows: of the data, one for each text. Their columns are given to the rewards, each as a list.
            texts: completions. Where a row's prompt is messages, its completion is a message, too.

        Raises:
            ValueError: a reward does not give one finite number, or None, for each text.
        """
        columns = {
            name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)
        }
        prompts = columns.pop("prompt")
        completions = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        found = [one(completions=completions, prompts=prompts, **columns) for one in self.rewards]
        return torch.stack([_numbers(*pair, len(texts)) for pair in zip(self.names, found, strict=True)], dim=1)

    def total(self, judged: Tensor) -> Tensor:
        """The weighted sum of the rewards of each completion, float64 [n]; one that does not apply adds 0."""
        return (judged.nan_to_num(nan=0.0) * self.weights.to(judged.device)).sum(1)


def _reward(given: object) -> Callable:
    if callable(given):
        return given
    raise TypeError(f"a reward must be a name or a function, got {type(given).__name__}")


def _numbers(name: str, values: object, count: int) -> Tensor:
    """The values of a reward, checked."""
    values = values.tolist() if isinstance(values, Tensor) else list(values)
    if len(values) != count:
        raise ValueError(f"the reward {name} must give a number for each of {count} completions, got {len(values)}")
    numbers = [math.nan if value is None else float(value) for value in values]
    wrong = next((value for value in values if value is not None and not math.isfinite(value)), None)
    if wrong is not None:
        raise ValueError(f"the reward {name} must give finite numbers or None, got {wrong}")
    return torch.tensor(numbers, dtype=torch.float64)
