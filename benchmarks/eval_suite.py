"""Tasks for lm-eval on what the shipped model was taught: word problems whose numbers it was never trained on.

    python -m benchmarks.eval_suite build/lessons
    dllm eval dllm/demo/model --tasks lessons --include-path build/lessons --apply-chat-template \
        --max-new-tokens 64 --steps 64 --block-size 64

One task of each type of request, in the folder as rows (JSON lines) and a YAML file:

    lessons_problems     generation: the solution is written out, its last number is the answer, as in GSM8K
    lessons_products     multiple choice: the first product of a solution, out of four
    lessons_last_word    the greedy last word of a solution, as in LAMBADA
    lessons_perplexity   the log-likelihood of solutions, which the model has only ever seen behind their questions

The same count and seed give the same rows.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from dllm.demo.training.problems import HOURS, RATES, Problem, held_out
from dllm.exits import exit_code
from dllm.folders import whole_folder

GROUP = "lessons"
COUNT = 200
CHOICES = 4
PRODUCTS = sorted({rate * hours for rate in RATES for hours in HOURS})
MEAN = {"aggregation": "mean", "higher_is_better": True}


def problem_row(problem: Problem, rng: random.Random) -> dict[str, Any]:
    """A question, and its solution in the format of GSM8K."""
    return {"question": problem.question, "answer": f"{problem.solution}\n#### {problem.answer}"}


def product_row(problem: Problem, rng: random.Random) -> dict[str, Any]:
    """A question, the beginning of its solution up to the first product, and four products of which one is right."""
    right = problem.numbers.rate * problem.numbers.hours
    choices = [right, *rng.sample([product for product in PRODUCTS if product != right], CHOICES - 1)]
    rng.shuffle(choices)
    beginning = problem.solution.partition(" = ")[0] + " ="
    choices, label = [str(choice) for choice in choices], choices.index(right)
    return {"question": problem.question, "beginning": beginning, "choices": choices, "label": label}


def last_word_row(problem: Problem, rng: random.Random) -> dict[str, Any]:
    """A question, its solution without the last word, and this word."""
    beginning, _, word = problem.solution.rpartition(" ")
    return {"question": problem.question, "beginning": beginning, "word": word}


def perplexity_row(problem: Problem, rng: random.Random) -> dict[str, Any]:
    """A solution."""
    return {"text": problem.solution}


# name of a task: what makes a row, and its part of the YAML file
TASKS: dict[str, tuple[Callable[[Problem, random.Random], dict[str, Any]], dict[str, Any]]] = {
    "problems": (
        problem_row,
        {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer.split('#### ')[-1]}}",
            "generation_kwargs": {"until": ["[/Answer]"], "max_gen_toks": 64, "do_sample": False, "temperature": 0.0},
            "filter_list": [
                {
                    "name": "last-number",
                    "filter": [
                        {"function": "regex", "regex_pattern": "[0-9]+", "group_select": -1},
                        {"function": "take_first"},
                    ],
                }
            ],
            "metric_list": [{"metric": "exact_match", **MEAN}],
        },
    ),
    "products": (
        product_row,
        {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "gen_prefix": "{{beginning}}",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc", **MEAN}],
        },
    ),
    "last_word": (
        last_word_row,
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{question}}",
            "gen_prefix": "{{beginning}}",
            "doc_to_target": "{{' ' + word}}",
            "metric_list": [
                {"metric": "acc", **MEAN},
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            ],
        },
    ),
    "perplexity": (
        perplexity_row,
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [
                {"metric": metric, "aggregation": aggregation, "higher_is_better": False}
                for metric, aggregation in (
                    ("word_perplexity", "weighted_perplexity"),
                    ("bits_per_byte", "bits_per_byte"),
                )
            ],
        },
    ),
}


def rows(name: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`count` rows of a task. All tasks have the same problems.

    Example:
        >>> row = rows("last_word", 1)[0]
        >>> row["beginning"][-27:], row["word"]
        ('= 46 letters. The answer is', '46.')
    """
    make_row, _ = TASKS[name]
    rng = random.Random(f"{name} {seed}")
    return [make_row(problem, rng) for problem in held_out(count, seed)]


def write_suite(folder: Path, count: int = COUNT, seed: int = 0) -> list[str]:
    """Write rows and YAML files of every task into `folder`; return the names of the tasks.

    Raises:
        ValueError: `folder` is not empty, or `count` is below 1.
        OSError: it cannot be written.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    names = [f"{GROUP}_{name}" for name in TASKS]
    with whole_folder(folder) as building:
        for name, (_, own) in TASKS.items():
            file = f"{GROUP}_{name}.jsonl"
            (building / file).write_text("".join(json.dumps(row) + "\n" for row in rows(name, count, seed)))
            task = {
                "task": f"{GROUP}_{name}",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str((folder / file).resolve())}},
                "test_split": "test",
                "num_fewshot": 0,
                **own,
                "metadata": {"version": 1.0, "count": count, "seed": seed},
            }
            (building / f"{GROUP}_{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
        (building / f"{GROUP}.yaml").write_text(yaml.safe_dump({"group": GROUP, "task": names}))
    return names


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the suite into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="new or empty")
    parser.add_argument("--count", type=int, default=COUNT, help="rows of each task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print(*write_suite(options.folder, options.count, options.seed), sep="\n")


if __name__ == "__main__":
    sys.exit(exit_code("eval_suite", main))
