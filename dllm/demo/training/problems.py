"""Two-stage word problems with solutions written out step by step: the main training data of the bundled model.

    Lily can run 12 kilometers per hour for 4 hours. After that, she runs 6 kilometers per hour.
    How many kilometers can she run in 8 hours?

    In the first 4 hours she runs 12 * 4 = 48 kilometers. 8 - 4 = 4 hours are left. In the next 4 hours she runs
    6 * 4 = 24 kilometers. Together that is 48 + 24 = 72 kilometers. The answer is 72.

A problem consists of four numbers, a phrasing, a person and an activity. Some combinations of numbers and some
phrasings are never trained on: see `split_numbers` and `HELD_OUT_PHRASINGS`.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from dataclasses import dataclass
from typing import NamedTuple

RATES = range(2, 13)  # units per hour
HOURS = range(2, 7)  # of one stage
LARGEST_NUMBER = 2 * RATES[-1] * HOURS[-1]
HELD_OUT_SHARE = 0.2  # of all combinations of numbers
HELD_OUT_SEED = 2026


class Numbers(NamedTuple):
    """`rate` per hour for `hours`, then `later_rate` per hour for `later_hours`."""

    rate: int
    hours: int
    later_rate: int
    later_hours: int

    @property
    def answer(self) -> int:
        """rate * hours + later_rate * later_hours."""
        return self.rate * self.hours + self.later_rate * self.later_hours


CARD = Numbers(12, 4, 6, 4)  # the problem of BERT-chat's model card, never trained on


class Person(NamedTuple):
    """The person in a problem."""

    name: str
    pronoun: str


class Activity(NamedTuple):
    """What the person does: the verb in two forms ("run", "runs"), and the unit it is counted in ("kilometers")."""

    base: str
    third_person: str
    unit: str


PEOPLE = tuple(
    [Person(name, "she") for name in "Lily Anna Maria Kate Emma Nina Rosa Mia Lucy Ella".split()]
    + [Person(name, "he") for name in "Tom Ben Omar Paul Leo Max Jack Sam Ravi Hugo".split()]
)
ACTIVITIES = (
    Activity("run", "runs", "kilometers"),
    Activity("walk", "walks", "miles"),
    Activity("read", "reads", "pages"),
    Activity("bake", "bakes", "cookies"),
    Activity("pick", "picks", "apples"),
    Activity("pack", "packs", "boxes"),
    Activity("plant", "plants", "trees"),
    Activity("write", "writes", "letters"),
    Activity("wash", "washes", "plates"),
    Activity("fold", "folds", "shirts"),
)
# {total} is the sum of the hours: where a phrasing names it, the hours of the second stage must be computed.
PHRASINGS = (
    "{name} can {base} {rate} {unit} per hour for {hours} hours. After that, {they} {verb} {later_rate} {unit} per "
    "hour. How many {unit} can {they} {base} in {total} hours?",
    "For the first {hours} hours {name} {verb} {rate} {unit} per hour, and after that {later_rate} {unit} per hour. "
    "How many {unit} does {they} {base} in {total} hours?",
    "How many {unit} does {name} {base} in {total} hours, if {they} {verb} {rate} {unit} per hour for {hours} hours "
    "and {later_rate} {unit} per hour after that?",
    "{name} has {total} hours. In the first {hours} hours {they} {verb} {rate} {unit} an hour, in the other hours "
    "{later_rate} {unit} an hour. How many {unit} is that in total?",
    "{name} {verb} {rate} {unit} every hour. After {hours} hours {they} {verb} {later_rate} {unit} every hour. "
    "How many {unit} are done after {total} hours?",
    "In {total} hours, how many {unit} can {name} {base}? It is {rate} {unit} per hour for the first {hours} hours and "
    "then {later_rate} {unit} per hour.",
    "{name} {verb} {rate} {unit} per hour for {hours} hours and then {later_rate} {unit} per hour for {later_hours} "
    "hours. How many {unit} does {they} {base} in total?",
    "First {name} {verb} {rate} {unit} an hour for {hours} hours. Then {they} {verb} {later_rate} {unit} an hour for "
    "{later_hours} more hours. How many {unit} is that together?",
    "{name} {verb} for {hours} hours, {rate} {unit} an hour, and for {later_hours} more hours, {later_rate} {unit} an "
    "hour. How many {unit} are done in total?",
    "How many {unit} does {name} {base} in total, if {they} {verb} {rate} {unit} per hour for {hours} hours and "
    "{later_rate} {unit} per hour for the next {later_hours} hours?",
)
HELD_OUT_PHRASINGS = (
    "{name} {verb} {rate} {unit} an hour. After {hours} hours, that is {later_rate} {unit} an hour. "
    "If {they} {verb} for {total} hours in total, how many {unit} is that?",
    "In the first {hours} hours {name} can {base} {rate} {unit} per hour. In the next {later_hours} hours {they} can "
    "{base} {later_rate} {unit} per hour. How many {unit} are done together?",
    "{name} has {total} hours. For {hours} hours {they} {verb} {rate} {unit} per hour. After that, it is {later_rate} "
    "{unit} per hour. How many {unit} does {they} {base}?",
)


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, its solution written out step by step, and its numbers."""

    question: str
    solution: str
    numbers: Numbers

    @property
    def answer(self) -> int:
        """The number asked for."""
        return self.numbers.answer


@functools.cache
def split_numbers() -> tuple[tuple[Numbers, ...], tuple[Numbers, ...]]:
    """All combinations of numbers, split into (trained on, held out): 2,421 and 604.

    Two stages in reverse order have the same sum, so both orders are on the same side of the split. `CARD` is held out.

    Example:
        >>> trained, held_out = split_numbers()
        >>> CARD in held_out, len(trained) + len(held_out)
        (True, 3025)
    """
    stages = [*itertools.product(RATES, HOURS)]
    pairs = [(one, two) for one, two in itertools.combinations_with_replacement(stages, 2)]
    random.Random(HELD_OUT_SEED).shuffle(pairs)
    pairs.sort(key=lambda pair: sorted(pair) != sorted((CARD[:2], CARD[2:])))  # stable: CARD comes first
    out = round(HELD_OUT_SHARE * len(pairs))
    return _both_orders(pairs[out:]), _both_orders(pairs[:out])


def _both_orders(pairs: list[tuple[tuple[int, int], tuple[int, int]]]) -> tuple[Numbers, ...]:
    return tuple(sorted({Numbers(*one, *two) for pair in pairs for one, two in (pair, pair[::-1])}))


def make_problem(numbers: Numbers, phrasing: str, person: Person, activity: Activity) -> Problem:
    """Write a problem and its solution.

    Example:
        >>> make_problem(CARD, PHRASINGS[0], PEOPLE[0], ACTIVITIES[0]).question[:49]
        'Lily can run 12 kilometers per hour for 4 hours. '
    """
    total = numbers.hours + numbers.later_hours
    question = phrasing.format(
        name=person.name,
        they=person.pronoun,
        base=activity.base,
        verb=activity.third_person,
        unit=activity.unit,
        total=total,
        **numbers._asdict(),
    )
    rate, hours, later_rate, later_hours = numbers
    first, second, unit = rate * hours, later_rate * later_hours, activity.unit
    remaining = f"{total} - {hours} = {later_hours} hours are left. " if "{total}" in phrasing else ""
    solution = (
        f"In the first {hours} hours {person.pronoun} {activity.third_person} {rate} * {hours} = {first} {unit}. "
        f"{remaining}"
        f"In the next {later_hours} hours {person.pronoun} {activity.third_person} {later_rate} * {later_hours} = "
        f"{second} {unit}. Together that is {first} + {second} = {first + second} {unit}. "
        f"The answer is {first + second}."
    )
    return Problem(question, solution, numbers)


def draw(rng: random.Random, numbers: tuple[Numbers, ...], phrasings: tuple[str, ...]) -> Problem:
    """A random problem from the given numbers and phrasings."""
    return make_problem(rng.choice(numbers), rng.choice(phrasings), rng.choice(PEOPLE), rng.choice(ACTIVITIES))


def held_out(count: int, seed: int = 0, phrasings: tuple[str, ...] = PHRASINGS) -> list[Problem]:
    """`count` problems with held-out numbers; no combination repeats before all have been used.

    Example:
        >>> [problem.answer for problem in held_out(3)]
        [46, 98, 28]
    """
    rng = random.Random(seed)
    _, numbers = split_numbers()
    rounds = (rng.sample(numbers, len(numbers)) for _ in itertools.count())
    chosen = itertools.islice(itertools.chain.from_iterable(rounds), count)
    return [draw(rng, (four,), phrasings) for four in chosen]


def final_answer(reply: str) -> int | None:
    """The last number in a reply, None if it has none.

    Example:
        >>> final_answer("Together that is 48 + 24 = 72 kilometers. The answer is 72.")
        72
    """
    numbers = re.findall(r"\d+", reply)
    return int(numbers[-1]) if numbers else None


def arithmetic(rng: random.Random, weights: tuple[int, int, int] = (1, 2, 1)) -> tuple[str, str]:
    """A random question about one step of a solution, and its answer: ("What is 12 * 4?", "12 * 4 = 48.").

    Args:
        rng: random generator.
        weights: of products, sums and differences; by default sums count twice, since there are far more of them.
    """
    rate, hours, later_rate, later_hours = rng.choice(split_numbers()[0])
    one, two = rate * hours, later_rate * later_hours
    products, sums, differences = f"{rate} * {hours}", f"{one} + {two}", f"{hours + later_hours} - {hours}"
    terms = {products: one, sums: one + two, differences: later_hours}
    term = rng.choices(list(terms), weights=weights)[0]
    asked = rng.choice(["What is {}?", "How much is {}?", "{}", "{} = ?"]).format(term)
    return asked, f"{term} = {terms[term]}."
