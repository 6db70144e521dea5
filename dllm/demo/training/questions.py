"""The tasks that accuracy is measured on: questions, their right answers, and how an answer is read from a reply."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import NamedTuple

from dllm.demo.training import sums
from dllm.demo.training.problems import HELD_OUT_PHRASINGS, PHRASINGS, final_answer, held_out


class Question(NamedTuple):
    """A question, the right answer, and the function that reads the answer from a reply."""

    text: str
    answer: object
    read: Callable[[str], object]


def word_problems(count: int, seed: int, phrasings: tuple[str, ...]) -> list[Question]:
    """Problems with held-out numbers; the last number of a reply is its answer."""
    return [Question(problem.question, problem.answer, final_answer) for problem in held_out(count, seed, phrasings)]


def sums_in_words(count: int, seed: int) -> list[Question]:
    """Sums of held-out pairs; the last number of a reply is its answer."""
    rng = random.Random(seed)
    drawn = (sums.draw(rng, held_out=True) for _ in range(count))
    return [Question(each.question, each.answer, final_answer) for each in drawn]


def small_talk(count: int, seed: int) -> list[Question]:
    """Lines of the training dialogues; the reply must equal the next line of the dialogue.

    Raises:
        ValueError: there are fewer than `count` lines.
    """
    from dllm.demo.training import dialogues

    pairs = dialogues.small_talk()
    if count > len(pairs):
        raise ValueError(f"count must be at most the {len(pairs)} lines of small talk, got {count}")
    return [Question(line, reply, str) for line, reply in random.Random(seed).sample(pairs, count)]


TASKS: dict[str, Callable[[int, int], list[Question]]] = {
    "problems": functools.partial(word_problems, phrasings=PHRASINGS),
    "new-phrasings": functools.partial(word_problems, phrasings=HELD_OUT_PHRASINGS),
    "sums-in-words": sums_in_words,
    "small-talk": small_talk,
}
