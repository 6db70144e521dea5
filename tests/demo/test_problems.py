"""The word problems: their sums are right, and what is held out is held out."""

from __future__ import annotations

import operator
import random
import re

import pytest

from dllm.demo.training import problems
from dllm.demo.training.problems import ACTIVITIES, CARD, HELD_OUT_PHRASINGS, PEOPLE, PHRASINGS, Numbers

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def equations(text: str) -> list[tuple[int, int]]:
    """(left side as computed here, right side as written) of every equation in a text."""
    found = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", text)
    return [(OPERATIONS[sign](int(one), int(two)), int(result)) for one, sign, two, result in found]


def test_the_model_cards_problem():
    problem = problems.make_problem(CARD, PHRASINGS[0], PEOPLE[0], ACTIVITIES[0])
    assert problem.question == (
        "Lily can run 12 kilometers per hour for 4 hours. After that, she runs 6 kilometers per hour. "
        "How many kilometers can she run in 8 hours?"
    )
    assert problem.answer == problems.final_answer(problem.solution) == 72


@pytest.mark.parametrize("phrasing", PHRASINGS + HELD_OUT_PHRASINGS)
def test_sums_are_right_and_the_question_says_what_they_need(phrasing):
    rng = random.Random(0)
    for _ in range(50):
        numbers = rng.choice(problems.split_numbers()[0])
        problem = problems.make_problem(numbers, phrasing, rng.choice(PEOPLE), rng.choice(ACTIVITIES))
        sides = equations(problem.solution)
        assert len(sides) == 3 + ("left" in problem.solution)
        assert all(computed == written for computed, written in sides)
        assert sides[-1][0] == problems.final_answer(problem.solution) == problem.answer
        asked = sorted(map(int, re.findall(r"\d+", problem.question)))
        last = numbers.hours + numbers.later_hours if "left" in problem.solution else numbers.later_hours
        assert asked == sorted([numbers.rate, numbers.hours, numbers.later_rate, last])


def test_no_combination_is_on_both_sides_in_either_order():
    trained, held_out = map(set, problems.split_numbers())
    assert len(trained) + len(held_out) == (len(problems.RATES) * len(problems.HOURS)) ** 2
    assert 0.19 < len(held_out) / (len(trained) + len(held_out)) < 0.21
    for side, other in ((trained, held_out), (held_out, trained)):
        assert not any(Numbers(*four[2:], *four[:2]) in other for four in side)
    assert CARD in held_out


def test_held_out_problems_are_held_out_and_differ():
    asked = problems.held_out(500)
    assert len({problem.numbers for problem in asked}) == 500
    assert {problem.numbers for problem in asked} <= set(problems.split_numbers()[1])
    assert asked == problems.held_out(500) != problems.held_out(500, seed=1)
    assert len(problems.held_out(1000)) == 1000  # more than there are combinations


def test_arithmetic_is_right():
    rng = random.Random(0)
    for _ in range(200):
        question, answer = problems.arithmetic(rng)
        ((computed, written),) = equations(answer)
        assert computed == written
        assert answer.partition(" =")[0] in question


@pytest.mark.parametrize(
    ("reply", "number"), [("The answer is 72.", 72), ("7 * 8 = 56.", 56), ("no number", None), ("", None), ("1 2 x", 2)]
)
def test_final_answer(reply, number):
    assert problems.final_answer(reply) == number
