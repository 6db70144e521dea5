"""What is asked, and when: word problems with short and long answers, at the moments of a Poisson process."""

from __future__ import annotations

import random
from typing import NamedTuple

from dllm.demo.training.questions import TASKS

NEW_TOKENS = {"short": 32, "long": 128}  # canvases of the shipped model, which has 192 positions
SHORT_SHARE = 0.75


class Request(NamedTuple):
    """A question.

    text: of the user's turn.
    kind: "short" or "long", by the length of the answer's canvas.
    new_tokens: that length.
    seed: of the noise.
    """

    text: str
    kind: str
    new_tokens: int
    seed: int


def mixed(count: int, seed: int = 0) -> list[Request]:
    """Word problems with held-out numbers; three in four have a short canvas. The same seed asks the same.

    Example:
        >>> [request.kind for request in mixed(4)]
        ['long', 'long', 'short', 'short']
    """
    rng, requests = random.Random(seed), []
    for number, question in enumerate(TASKS["problems"](count, seed)):
        kind = "short" if rng.random() < SHORT_SHARE else "long"
        requests.append(Request(question.text, kind, NEW_TOKENS[kind], number))
    return requests


def poisson(count: int, rate: float, seed: int = 0) -> list[float]:
    """Moments of arrival, s from the start, ascending: gaps are drawn from an exponential distribution.

    Args:
        count: how many.
        rate: per second on average.
        seed: of the gaps; another rate stretches the same gaps.

    Raises:
        ValueError: the rate is not positive.

    Example:
        >>> moments = poisson(1000, rate=5.0)
        >>> round(1000 / moments[-1], 1)
        5.1
    """
    if not rate > 0:
        raise ValueError(f"rate must be above 0 requests/s, got {rate}")
    rng, moment, moments = random.Random(seed), 0.0, []
    for _ in range(count):
        moment += rng.expovariate(rate)
        moments.append(moment)
    return moments
