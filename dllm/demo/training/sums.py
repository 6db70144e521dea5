"""Sums asked in words: a kind of question that the bundled model is never trained on.

    How many are 14 and 4 together?

Its lessons have sums with a sign ("What is 14 + 4?"), and problems of two stages. Pairs of numbers are split, so that a
model can be trained on such sums and asked others.
"""

from __future__ import annotations

import functools
import itertools
import random
from typing import NamedTuple

from dllm.demo.training.problems import HELD_OUT_SEED, HELD_OUT_SHARE, HOURS, RATES

WORDINGS = (
    "{one} and {other} together?",
    "How many are {one} and {other} together?",
    "What is {one} and {other} in total?",
    "How much is {one} and then {other}?",
    "In total, how many are {one} and {other}?",
)

Pairs = tuple[tuple[int, int], ...]


class Sum(NamedTuple):
    """A question, its two numbers, and the answer."""

    question: str
    terms: tuple[int, int]
    answer: int


@functools.cache
def split_pairs() -> tuple[Pairs, Pairs]:
    """All pairs of numbers, which are products of a rate and hours as in the problems: (trained on, held out).

    Example:
        >>> [len(pairs) for pairs in split_pairs()]
        [449, 112]
    """
    values = sorted({rate * hours for rate, hours in itertools.product(RATES, HOURS)})
    pairs = [*itertools.combinations_with_replacement(values, 2)]
    random.Random(HELD_OUT_SEED).shuffle(pairs)
    out = round(HELD_OUT_SHARE * len(pairs))
    return tuple(pairs[out:]), tuple(pairs[:out])


def draw(rng: random.Random, *, held_out: bool) -> Sum:
    """A random sum of a pair of one part, its numbers in a random order.

    Example:
        >>> draw(random.Random(0), held_out=True)
        Sum(question='24 and 14 together?', terms=(24, 14), answer=38)
    """
    one, other = rng.sample(rng.choice(split_pairs()[held_out]), 2)
    return Sum(rng.choice(WORDINGS).format(one=one, other=other), (one, other), one + other)
