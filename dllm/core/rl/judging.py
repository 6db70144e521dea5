"""Rewards of completions: several functions with weights, called as TRL calls them, each within its time limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dllm.core.rewards import Reward, TimedRewards


class Judge:
    """Rewards with their weights.

    Args:
        rewards: one or several: names of registered rewards, or functions
            (:class:`~dllm.core.rewards.timed.TimedRewards`).
        weights: one for each reward; 1 each if None.

    Raises:
        TypeError, ValueError: as TimedRewards; or there are weights of another number, or not finite ones.

    Example:
        >>> def brevity(completions, **columns):
        ...     return [-len(completion) for completion in completions]
        >>> judge = Judge(brevity)
        >>> judge([{"prompt": "Hello"}], ["Hi"])
        tensor([[-2.]], dtype=torch.float64)
    """

    def __init__(self, rewards: str | Reward | Sequence[str | Reward], weights: Sequence[float] | None = None):
        self.rewards = TimedRewards(rewards)
        self.names = self.rewards.names
        weights = [1.0] * len(self.names) if weights is None else [float(weight) for weight in weights]
        if len(weights) != len(self.names) or not all(map(math.isfinite, weights)):
            raise ValueError(
                f"reward_weights must be {len(self.names)} finite numbers, one for each reward, got {weights}"
            )
        self.weights = torch.tensor(weights, dtype=torch.float64)

    def __call__(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> Tensor:
        """The rewards of texts, float64 [n, rewards]; NaN where a reward gave None.

        Args:
            rows: of the data, one for each text. Their columns are given to the rewards, each as a list.
            texts: completions. Where a row's prompt is messages, its completion is a message, too.

        Raises:
            ValueError: a reward does not give one finite number, or None, for each text.
            RewardError: a reward raises an error.
        """
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        columns["prompts"] = columns.pop("prompt")
        completions = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(columns["prompts"], texts, strict=True)
        ]
        found = self.rewards(completions, columns)
        return torch.tensor(
            [[math.nan if value is None else value for value in each] for each in found], dtype=torch.float64
        ).T

    def total(self, judged: Tensor) -> Tensor:
        """The weighted sum of the rewards of each completion, float64 [n]; one that does not apply adds 0."""
        return (judged.nan_to_num(nan=0.0) * self.weights.to(judged.device)).sum(1)
