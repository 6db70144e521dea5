"""What requests cost: forwards, tokens and seconds of each task, added up over processes and over resumed runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dllm.core.eval.journal import Entry


@dataclass
class Usage:
    """The cost of a task's requests.

    requests: different ones; those of repeated documents that have the same seed count once.
    resumed: those of them that an earlier run had answered. What they cost then is counted below.
    forwards: rows of the model.
    tokens: generated tokens, or tokens of targets.
    seconds: wall time of the model's work; of several processes the sum.
    variance: of the estimated log-likelihoods, the sum over requests.
    """

    requests: int = 0
    resumed: int = 0
    forwards: int = 0
    tokens: int = 0
    seconds: float = 0.0
    variance: float = 0.0

    def count(self, entry: Entry, *, resumed: bool) -> None:
        """Count a request."""
        self.requests += 1
        self.resumed += resumed
        self.forwards += entry.forwards
        self.tokens += entry.tokens
        self.seconds += entry.seconds
        if entry.stderr is not None and math.isfinite(entry.stderr):
            self.variance += entry.stderr**2

    def add(self, other: Usage) -> None:
        """Add the cost of other requests."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def as_dict(self) -> dict[str, Any]:
        """The numbers for a record.

        Example:
            >>> usage = Usage()
            >>> usage.count(Entry("42", forwards=8, tokens=4, seconds=0.5), resumed=False)
            >>> usage.as_dict()["tokens_per_forward"], usage.as_dict()["tokens_per_second"]
            (0.5, 8.0)
        """
        return {
            "requests": self.requests,
            "resumed_requests": self.resumed,
            "forwards": self.forwards,
            "tokens": self.tokens,
            "tokens_per_forward": round(self.tokens / max(1, self.forwards), 4),
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 3) if self.seconds else None,
            "mean_likelihood_stderr": (self.variance / self.requests) ** 0.5 if self.variance else 0.0,
        }


def added(parts: Iterable[Mapping[str, Usage]]) -> dict[str, Usage]:
    """The sums over processes, by task."""
    sums: dict[str, Usage] = {}
    for part in parts:
        for task, usage in part.items():
            sums.setdefault(task, Usage()).add(usage)
    return sums
