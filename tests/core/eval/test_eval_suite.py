"""The tasks on what the shipped model was taught, in front of lm-eval."""

from __future__ import annotations

import json

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from benchmarks import eval_suite
from dllm.demo.training.problems import final_answer
from tests.core.eval.lines import Recorder


class Solver(Recorder):
    """It knows every solution, or none."""

    knows = True

    def __init__(self, folder):
        super().__init__()
        read = [json.loads(line) for line in (folder / "lessons_problems.jsonl").read_text().splitlines()]
        self.solutions = {row["question"]: row["answer"].partition("\n")[0] for row in read}

    def solution(self, prompt: str) -> str:
        (found,) = [text for question, text in self.solutions.items() if question in prompt]
        return found if self.knows else "none"

    def generate_until(self, requests, **_):
        return [self.solution(request.args[0]) for request in requests]

    def loglikelihood(self, requests, **_):
        answers = []
        for prompt, target in (request.args for request in requests):
            right = f"{prompt.partition('<assistant>')[2]}{target}" in self.solution(prompt)
            answers.append((-0.1 if right else -9.0, right))
        return answers


def evaluate(folder, model):
    manager = TaskManager(include_defaults=False, include_path=str(folder))
    return simple_evaluate(model, tasks=["lessons"], task_manager=manager, apply_chat_template=True, bootstrap_iters=0)


@pytest.mark.parametrize("knows", [True, False])
def test_who_knows_the_solutions_has_every_point(tmp_path, knows, monkeypatch):
    folder = tmp_path / "suite"
    names = eval_suite.write_suite(folder, count=12)
    monkeypatch.setattr(Solver, "knows", knows)
    found = evaluate(folder, Solver(folder))["results"]
    assert {name for name in found if name != "lessons"} == set(names)
    assert found["lessons_problems"]["exact_match,last-number"] == knows
    assert found["lessons_last_word"]["acc,none"] == knows
    if knows:
        assert found["lessons_products"]["acc,none"] == 1
    assert found["lessons_perplexity"]["bits_per_byte,none"] == pytest.approx(1.4427, abs=1e-3)  # e a character


def test_the_rows_are_what_their_names_say():
    made = [eval_suite.rows(name, 20) for name in ("problems", "products", "last_word")]
    for problem, product, word in zip(*made, strict=True):
        assert final_answer(word["word"]) == int(problem["answer"].rpartition("#### ")[2])
        assert problem["answer"].startswith(f"{word['beginning']} {word['word']}\n")
        solved = f"{product['beginning']} {product['choices'][product['label']]} "
        assert problem["answer"].startswith(solved) and len(set(product["choices"])) == 4
        assert problem["question"] == product["question"] == word["question"]
    assert eval_suite.rows("products", 3, seed=1) == eval_suite.rows("products", 3, seed=1)
    assert eval_suite.rows("products", 3, seed=1) != eval_suite.rows("products", 3, seed=2)


def test_nothing_is_written_over(tmp_path, capsys):
    eval_suite.main([str(tmp_path / "suite"), "--count", "2"])
    assert capsys.readouterr().out.split() == [f"lessons_{name}" for name in eval_suite.TASKS]
    with pytest.raises(ValueError, match="exists"):
        eval_suite.write_suite(tmp_path / "suite")
    with pytest.raises(ValueError, match="count must be at least 1"):
        eval_suite.write_suite(tmp_path / "other", count=0)
