"""A few rows for each data set that the published evaluations read, in the columns of the published data sets.

The rows are made up: only their form is that of the data sets. `load_dataset` stands for that of `datasets`.
"""

from __future__ import annotations

from typing import Any

import datasets

SHOTS = 8  # as many as any task asks for


def load_dataset(path: str, name: str | None = None, **kwargs: Any) -> datasets.DatasetDict:
    """The splits of a data set, as `datasets.load_dataset` returns them."""
    if path not in DATA_SETS:
        raise ConnectionError(f"the tests have no rows of {path}")
    splits = DATA_SETS[path](name)
    return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in splits.items()})


def _gsm8k(name: str | None) -> dict[str, list[dict]]:
    assert name == "main"
    rows = [
        dict(
            question=f"Tom has {n} apples and buys 2 more. How many has he?", answer=f"{n} + 2 = {n + 2}\n#### {n + 2}"
        )
        for n in range(SHOTS + 2)
    ]
    return dict(train=rows, test=rows[-2:])


def _mmlu(name: str | None) -> dict[str, list[dict]]:
    rows = [
        dict(question=f"Question {n} of {name}?", subject=name, choices=["one", "two", "three", "four"], answer=n % 4)
        for n in range(5)
    ]
    return dict(test=rows[:2], dev=rows, validation=rows[:1])


def _mmlu_pro(name: str | None) -> dict[str, list[dict]]:
    categories = "biology business chemistry economics engineering health history law math other philosophy physics"
    rows = [
        dict(
            question_id=n,
            question=f"Question {n} of {category}?",
            options=["one", "two", "three"],
            answer="B",
            answer_index=1,
            cot_content="A: Let's think step by step. Two is right. The answer is (B).",
            category=category,
            src="",
        )
        for category in [*categories.split(), "computer science", "psychology"]
        for n in range(5)
    ]
    return dict(test=[row for row in rows if row["question_id"] < 2], validation=rows)


def _arc(name: str | None) -> dict[str, list[dict]]:
    assert name in ("ARC-Easy", "ARC-Challenge")
    rows = [
        dict(
            id=f"Mercury_{n}",
            question=f"Which is number {n}?",
            choices=dict(text=["first", "second", "third", "fourth"], label=list("ABCD")),
            answerKey="ABCD"[n % 4],
        )
        for n in range(3)
    ]
    return dict(train=rows, validation=rows, test=rows)


def _hellaswag(name: str | None) -> dict[str, list[dict]]:
    rows = [
        dict(
            ind=n,
            activity_label="Washing hands",
            ctx_a="A man opens the tap.",
            ctx_b="he",
            ctx="A man opens the tap. he",
            endings=["[step] washes his hands.", "flies away.", "sings a song.", "sleeps."],
            source_id=f"activitynet~v_{n}",
            split="val",
            split_type="indomain",
            label="0",
        )
        for n in range(3)
    ]
    return dict(train=rows, validation=rows, test=rows)


def _piqa(name: str | None) -> dict[str, list[dict]]:
    rows = [dict(goal=f"To open jar {n},", sol1="turn the lid.", sol2="sing to it.", label=0) for n in range(3)]
    return dict(train=rows, validation=rows)


def _race(name: str | None) -> dict[str, list[dict]]:
    assert name == "high"
    problems = [
        dict(question="Where is the cat?", answer="A", options=["On the mat.", "Away.", "In a tree.", "At sea."]),
        dict(question="The cat is  _  .", answer="B", options=["green", "asleep", "tall", "late"]),
    ]
    return dict(test=[dict(article="A cat sleeps on the mat.", problems=str(problems)) for _ in range(2)])


def _gpqa(name: str | None) -> dict[str, list[dict]]:
    assert name == "gpqa_main"
    wrong = {f"Incorrect Answer {n}": f"{n} m" for n in (1, 2, 3)}
    return dict(train=[{"Question": f"How long is {n}?", "Correct Answer": "9 m"} | wrong for n in range(SHOTS)])


def _winogrande(name: str | None) -> dict[str, list[dict]]:
    assert name == "winogrande_xl"
    rows = [
        dict(sentence=f"Cup {n} did not fit the box because the _ was small.", option1="cup", option2="box", answer="2")
        for n in range(SHOTS)
    ]
    return dict(train=rows, validation=rows[:2])


def _ifeval(name: str | None) -> dict[str, list[dict]]:
    row = dict(key=1, prompt="Answer without a comma.", instruction_id_list=["punctuation:no_comma"], kwargs=[{}])
    return dict(train=[row, row | dict(key=2, prompt="Say yes, without a comma.")])


def _humaneval(name: str | None) -> dict[str, list[dict]]:
    rows = [
        dict(
            task_id=f"HumanEval/{n}",
            prompt=f'def plus_{n}(x):\n    """Return x + {n}."""\n',
            canonical_solution=f"    return x + {n}\n",
            test=f"def check(candidate):\n    assert candidate(1) == {1 + n}\n",
            entry_point=f"plus_{n}",
        )
        for n in range(2)
    ]
    return dict(test=rows)


def _mbpp(name: str | None) -> dict[str, list[dict]]:
    assert name == "full"
    rows = [
        dict(
            task_id=n,
            text=f"Write a function to add {n}.",
            code=f"def plus_{n}(x):\r\n    return x + {n}",
            test_list=[f"assert plus_{n}({x}) == {x + n}" for x in range(3)],
            test_setup_code="",
            challenge_test_list=[],
        )
        for n in range(1, 13)
    ]
    return dict(train=rows[:2], test=rows[10:], validation=rows[:2], prompt=rows[:10])


def _math(name: str | None) -> dict[str, list[dict]]:
    rows = [
        dict(problem=f"What is ${n} + 1$?", level="Level 1", type=name, solution=f"It is $\\boxed{{{n + 1}}}$.")
        for n in range(2)
    ]
    return dict(train=rows, test=rows)


def _bbh(name: str | None) -> dict[str, list[dict]]:
    return dict(test=[dict(input=f"not ( True ) and {word} is", target="False") for word in ("True", "False")])


def _ceval(name: str | None) -> dict[str, list[dict]]:
    rows = [
        dict(id=n, question=f"问题 {n}", A="一", B="二", C="三", D="四", answer="B", explanation="") for n in range(5)
    ]
    return dict(val=rows[:2], dev=rows, test=rows[:1])


def _cmmlu(name: str | None) -> dict[str, list[dict]]:
    rows = [dict(Question=f"问题 {n}", A="一", B="二", C="三", D="四", Answer="C") for n in range(5)]
    return dict(test=rows[:2], dev=rows)


def _truthfulqa(name: str | None) -> dict[str, list[dict]]:
    assert name == "multiple_choice"
    choices = dict(choices=["No.", "Yes.", "Perhaps."], labels=[1, 0, 0])
    rows = [dict(question=f"Is {n} a colour?", mc1_targets=choices, mc2_targets=choices) for n in range(2)]
    return dict(validation=rows)


def _lambada(name: str | None) -> dict[str, list[dict]]:
    rows = [dict(text=f"She took the bread out of the {thing}") for thing in ("oven", "basket")]
    return dict(test=rows, validation=rows)


DATA_SETS = {
    "openai/gsm8k": _gsm8k,
    "cais/mmlu": _mmlu,
    "TIGER-Lab/MMLU-Pro": _mmlu_pro,
    "allenai/ai2_arc": _arc,
    "Rowan/hellaswag": _hellaswag,
    "baber/piqa": _piqa,
    "EleutherAI/race": _race,
    "Idavidrein/gpqa": _gpqa,
    "allenai/winogrande": _winogrande,
    "google/IFEval": _ifeval,
    "openai/openai_humaneval": _humaneval,
    "google-research-datasets/mbpp": _mbpp,
    "EleutherAI/hendrycks_math": _math,
    "SaylorTwift/bbh": _bbh,
    "ceval/ceval-exam": _ceval,
    "haonan-li/cmmlu": _cmmlu,
    "truthfulqa/truthful_qa": _truthfulqa,
    "EleutherAI/lambada_openai": _lambada,
    "cimec/lambada": _lambada,
}
