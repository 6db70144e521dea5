"""Rewards against the published ones, number by number, and on texts that are made to break them."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from dllm.core.rewards import get_reward, reward_names
from dllm.core.rewards.code import blocked_imports
from dllm.core.rewards.countdown import value_of
from dllm.core.rewards.mathematics import are_equal, normalised

FACTS = json.loads((Path(__file__).parent / "rewards.json").read_text())
TEXTS = FACTS["rewards"]["texts"]
COLUMNS = {
    "correctness(42)": ["42"] * len(TEXTS),
    "correctness_math(boxed 42)": [r"Hence \boxed{42}."] * len(TEXTS),
    "correctness_math(boxed one half)": [r"Hence \boxed{\frac{1}{2}}."] * len(TEXTS),
}
ANY_COLUMNS = dict(
    answer=["42"], numbers=[[2, 3, 4]], target=[5], puzzle=["1030041020034001"], solution=["1234341221434321"],
    tests=[["assert f() == 1"]],
)  # fmt: skip
posix = pytest.mark.skipif(os.name != "posix", reason="limits of processes are those of Unix")


@pytest.mark.parametrize("case", FACTS["rewards"]["values"])
@pytest.mark.parametrize("as_messages", [False, True])
def test_formats_and_answers(case, as_messages):
    completions = [[{"role": "assistant", "content": text}] for text in TEXTS] if as_messages else TEXTS
    values = get_reward(case.partition("(")[0])(completions, answer=COLUMNS.get(case), prompts=TEXTS)
    assert values == FACTS["rewards"]["values"][case] and all(type(value) is float for value in values)


def test_countdown():
    facts = FACTS["countdown"]
    count = len(facts["texts"])
    values = get_reward("countdown")(
        facts["texts"], numbers=[facts["numbers"]] * count, target=[facts["target"]] * count
    )
    assert values == facts["values"]


def test_sudoku():
    facts = FACTS["sudoku"]
    count = len(facts["texts"])
    values = get_reward("sudoku")(
        facts["texts"], puzzle=[facts["puzzle"]] * count, solution=[facts["solution"]] * count
    )
    assert values == facts["values"]


@pytest.mark.parametrize(
    ("expression", "numbers", "target", "value"),
    [
        ("(3-1)/2*4", [1, 2, 3, 4], 4, 1.0),
        ("1/3*3", [1, 3, 3], 1, 1.0),  # exact: no rounding
        ("-3+2*4", [2, 3, 4], 5, 1.0),
        ("2*4-3", [2, 3, 4, 5], 5, 0.1),  # one is left
        ("2*4-3+2-2", [2, 3, 4], 5, 0.1),  # one is used twice
        ("5", [5], 5, 1.0),
        ("2.0*4-3", [2, 3, 4], 5, 0.1),
        ("02*4-3", [2, 3, 4], 5, 0.1),
        ("8//3+3", [8, 3, 3], 5, 0.1),
        ("2*4-3#", [2, 3, 4], 5, 0.1),
        ("", [2, 3, 4], 5, 0.1),
        ("2*4-3/0", [2, 3, 4, 0], 5, 0.1),
        ("2/(3-3)", [2, 3, 3], 5, 0.1),
        ("٢*4-3", [2, 3, 4], 5, 0.1),  # digits of another script
        ("２*4-3", [2, 3, 4], 5, 0.1),
        ("2(4)-3", [2, 3, 4], 5, 0.1),
        ("99**98**97", [97, 98, 99], 5, 0.1),
        ("9**9**9**9", [9, 9, 9, 9], 5, 0.1),
        ("__import__('os').system('true')", [2, 3, 4], 5, 0.1),
        ("(" * 10**6 + "5" + ")" * 10**6, [5], 5, 0.1),
        ("(" * 240 + "5" + ")" * 240, [5], 5, 0.1),
        ("-" * 498 + "5", [5], 5, None),  # as deep as the parser of this Python goes: right or wrong, no error
        ("+".join(["1"] * 10**5), [1], 5, 0.1),
        ("9" * 10**6, [5], 5, 0.1),
    ],
)
def test_expressions(expression, numbers, target, value):
    began = time.monotonic()
    (found,) = get_reward("countdown")([f"<answer>\n{expression}\n</answer>"], numbers=[numbers], target=[target])
    assert found in ((0.1, 1.0) if value is None else (value,)) and time.monotonic() - began < 1


def test_values_of_expressions_are_those_of_python():
    """Random expressions: the integers that stand in for the fractions are exact, so equality is meant."""
    random.seed(0)
    for _ in range(200):
        expression = str(random.randint(1, 9))
        for _ in range(random.randint(1, 5)):
            expression = f"({expression}){random.choice('+-*')}{random.randint(1, 9)}"
        assert value_of(expression)[0] == eval(expression)


@pytest.mark.parametrize("name", [name for name in reward_names() if name != "code"])
@pytest.mark.parametrize(
    "text",
    ["", "\0", "²٤٢", "<answer>", "</answer>", "</answer><answer>", "<answer></answer>" * 2, "\\boxed", "\\boxed{",
     "\\boxed{}}", "\\frac", "\\sqrt", "\\text{ \\text{ ", "\ud800"],
)  # fmt: skip
def test_odd_texts_have_a_value(name, text):
    (value,) = get_reward(name)([text], **ANY_COLUMNS)
    assert type(value) is float and value <= 0.75 and value == get_reward(name)([text], **ANY_COLUMNS)[0]


# each defeats a pattern or a parser that looks again from every place
UNITS = [
    "a", "<answer>", "</answer>", "<answer></answer>", "\n</reasoning>\n<answer>\n", "</reasoning> ", " ", "\\boxed{",
    "\\boxed ", "\\frac", "\\frac1", "\\sqrt{", "{", "}", "```\n", "```", "```python ", "0", "(", "\\text{ ",
]  # fmt: skip


@pytest.mark.parametrize("name", reward_names())
def test_long_texts_take_no_longer_than_they_are_long(name):
    began = time.monotonic()
    for unit in UNITS:
        for begin in ("", "<reasoning>\n"):
            get_reward(name)([begin + unit * (10**6 // len(unit))], **ANY_COLUMNS)
    assert time.monotonic() - began < 0.15 * 2 * len(UNITS)


@pytest.mark.parametrize("name", reward_names())
@pytest.mark.parametrize(
    "completions", [[None], [[]], [[{"role": "assistant"}]], [[{"role": "assistant", "content": None}]], "a", None]
)
def test_what_is_no_completion(name, completions):
    with pytest.raises(ValueError, match="completion"):
        get_reward(name)(completions, **ANY_COLUMNS)


@pytest.mark.parametrize("name", ["correctness", "correctness_math", "countdown", "sudoku", "code"])
def test_columns_of_another_length(name):
    with pytest.raises(ValueError, match="zip"):
        get_reward(name)(["a", "b"], **ANY_COLUMNS)


@pytest.mark.parametrize("name", reward_names())
def test_no_completions(name):
    assert get_reward(name)([], **{column: [] for column in ANY_COLUMNS}) == []


def test_sudoku_refuses_what_is_no_puzzle():
    for puzzle in (1030041020034001, "103004102003400", "١" * 16, "1234341221434321"):
        with pytest.raises(ValueError, match=r"16 digits|empty cell"):
            get_reward("sudoku")(["<answer>1</answer>"], puzzle=[puzzle], solution=["1234341221434321"])


ANSWERS = [
    "42", " 42 ", "4 2", r"\frac12", r"\frac{1}{2}", r"\dfrac{1}{2}", r"\tfrac12", r"\frac1{72}", r"\frac{3}4", "1/2",
    "3/4", "-3/4", "007/2", "a/b", "0.5", ".5", "x=5", "x = 5", "abc=5", "5=5=5", r"90^\circ", r"90^{\circ}",
    r"5\text{ cm}", r"5\text{cm}", r"\sqrt3", r"\sqrt{3}", r"2\sqrt3+\sqrt{5}", r"\left(1,2\right)", "(1,2)", r"50\%",
    r"\$5", "5", "", "\n5", r"1\\2", r"\frac", r"\frac1", r"\sqrt", r"1\text{ a}\text{ b}", r"10\!000", "{.5}", "0.25",
    r"\frac14", r"\boxed{5}",
]  # fmt: skip


def test_answers_of_math_are_equal_where_the_authors_rules_say_so():
    """Against lm-evaluation-harness' copy of these rules, in all pairs. It takes x/y as it stands; we do not."""
    theirs = pytest.importorskip("lm_eval.tasks.hendrycks_math.utils")
    answers = [answer for answer in ANSWERS if answer not in ("a/b", r"\boxed{5}")]
    pairs = [(first, second) for first in answers for second in answers]
    assert [pair for pair in pairs if are_equal(*pair) != theirs.is_equiv(*pair)] == []
    assert sum(are_equal(*pair) for pair in pairs) > 2 * len(answers)


def test_a_normal_form_is_normal():
    for answer in ANSWERS:
        try:
            once = normalised(answer)
        except ValueError:
            continue
        assert normalised(once) == once


ADD = "def add(a, b):\n    return a + b"
TESTS = "from __future__ import annotations\nfrom solution import add\n\ndef test_a():\n    assert add(2, 3) == 5\n\n"
TESTS += "def test_b():\n    assert add(2, 2) == 4\n\ndef helper(x): ...\n\ndef test_with(fixture): ...\n"


def block(program: str) -> str:
    return f"```python\n{program}\n```"


@posix
@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f"<answer>{block(ADD)}</answer>", 1.5),
        (f"{block('add = None')} {block(ADD)}", 1.0),
        (f"{block(ADD)}<answer>see above</answer>", 1.0),
        (f"<answer>{ADD}</answer>", 0.0),
        (f"<answer>{block('def add(a, b): return 5')}</answer>", 1.0),  # one of two
        (f"<answer>{block('def add(a, b):')}</answer>", 0.5),
        (f"<answer>{block('import os' + chr(10) + ADD)}</answer>", 0.5),
        (f"<answer>{block('raise SystemExit')}</answer>", 0.5),
        (f"<answer>{block(ADD + chr(10) + 'x = bytearray(1 << 31)')}</answer>", 0.5),
        (f"<answer>{block('def add(a, b):' + chr(10) + ' while a == b: pass' + chr(10) + ' return 5')}</answer>", 1.0),
        (f"<answer>{block('(' * 10**5)}</answer>", 0.5),
        (f"<answer>{block(ADD)[:-3]}</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_programs(text, value):
    assert get_reward("code")([text], tests=[TESTS]) == [value]


@posix
def test_programs_without_tests_and_with_listed_ones():
    texts = [f"<answer>{block(ADD)}</answer>"] * 4
    tests = ["def helper(): ...", [], ["assert add(1, 1) == 2", "assert solution.add(1, 1) == 3"], "def test_a(:"]
    assert get_reward("code")(texts, tests=tests) == [None, None, 1.0, None]


@pytest.mark.parametrize(
    ("program", "blocked"),
    [
        ("import math, re", set()),
        ("def f():\n    from os.path import join", {"os"}),
        ("__import__('os')", {"importlib"}),
        ("import os.path", {"os"}),
        ("from . import x", set()),
    ],
)
def test_blocked_modules(program, blocked):
    assert blocked_imports(program) == blocked
