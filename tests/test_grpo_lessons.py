"""The benchmark of diffu-GRPO on the lessons, on a model of one tiny layer and a few updates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import ModernBertConfig, ModernBertForMaskedLM

from benchmarks import grpo_lessons
from benchmarks.plot import published
from dllm.demo.training.lessons import MAX_LENGTH, vocabulary
from dllm.demo.training.problems import ACTIVITIES, CARD, HELD_OUT_PHRASINGS, PEOPLE, make_problem, split_numbers

pytest.importorskip("accelerate")
pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = "--updates 3 --prompts 2 --completions 2 --iterations 1 --steps 4 --problems 8 --questions 2 --watched 2".split()


@pytest.fixture(scope="module")
def tokenizer():
    return vocabulary()


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, tokenizer):
    """Runs the program with a tiny model in a folder; returns the exit code and what the last line says."""

    def tiny():
        torch.manual_seed(0)
        size = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        ends = dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), 4)
        size |= dict(vocab_size=len(tokenizer), max_position_embeddings=MAX_LENGTH, global_attn_every_n_layers=1)
        config = ModernBertConfig(**size, **ends, attn_implementation="eager")
        return ModernBertForMaskedLM(config).eval().requires_grad_(False), tokenizer

    monkeypatch.setattr(grpo_lessons, "load_shipped", tiny)
    for name in ("LOG_EVERY", "SAVE_EVERY"):
        monkeypatch.setattr(grpo_lessons, name, 1)

    def call(folder, *arguments):
        status = grpo_lessons.main([str(tmp_path / folder), *SMALL, *arguments, "--out", str(tmp_path / "rows")])
        printed = capsys.readouterr()
        return status, json.loads(printed.out.splitlines()[-1]) if status == 0 else printed.err

    return call


def test_an_interrupted_run_goes_on_and_a_finished_one_is_not_repeated(run, tmp_path, monkeypatch):
    status, last = run("whole")
    assert status == 0
    row, results = json.loads(Path(last["row"]).read_text()), last["results"]
    assert (row["kind"], row["results"]) == ("grpo_lessons", results)
    samplings = [(1, "low_confidence"), (16, "low_confidence"), (16, "random")]
    for scores in (results["before"], results["after"]):
        of = {task: [score for score in scores if score["task"] == task] for task in ("new-phrasings", "problems")}
        for found in of.values():
            assert [(score["tokens_per_step"], score["remasking"]) for score in found] == samplings
    updates = {name: [update for update, _ in curve] for name, curve in results["curves"].items()}
    assert updates["reward"] == updates["kl"] == [1, 2, 3] and updates["eval_rewards/exact"] == [0, 1, 2, 3]
    assert results["cpu_seconds"] > 0
    points = published.points_of("grpo.svg", [row])
    assert "exact answers" in published.write("grpo.svg", points, tmp_path).read_text()
    assert (tmp_path / "whole" / "run" / "training_curve.png").read_bytes()[:4] == b"\x89PNG"

    def stop(trainer, *given):
        if trainer.state.global_step == 2:
            raise OSError("stopped in the third update")
        return step(trainer, *given)

    step = grpo_lessons.LessonsTrainer.training_step
    with monkeypatch.context() as patched:
        patched.setattr(grpo_lessons.LessonsTrainer, "training_step", stop)
        status, message = run("cut")
        assert status == 1 and message.endswith("grpo_lessons: stopped in the third update\n")
    assert run("cut")[0] == 0
    weights, again = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(weights[name], again[name]) for name in weights)

    monkeypatch.setattr(grpo_lessons, "learn", lambda *_: pytest.fail("this has been done"))
    assert run("whole")[1]["results"] == results
    status, message = run("whole", "--seed", "1")
    assert status == 2 and "expected the settings of the run" in message


def test_rewards_read_the_answer_and_the_results():
    problem = make_problem(CARD, HELD_OUT_PHRASINGS[0], PEOPLE[0], ACTIVITIES[0])
    row = grpo_lessons.row_of(problem)
    replies = [problem.solution, "12 * 4 = 48 and 6 * 4 = 24, so 71.", "72", "", "It is = 72. The answer is 7."]
    completions = [[{"role": "assistant", "content": reply}] for reply in replies]
    columns = {name: [row[name]] * len(replies) for name in ("answer", "results")}
    assert grpo_lessons.exact(completions, **columns) == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert grpo_lessons.results_found(completions, **columns) == pytest.approx([1, 2 / 3, 0, 0, 1 / 3])


def test_no_problem_that_is_watched_is_trained_on():
    settings = grpo_lessons.Settings(updates=1, problems=300, watched=50)
    trained, watched = grpo_lessons.problems_of(settings)
    numbers, held_out = map(set, split_numbers())
    assert {problem.numbers for problem in trained} <= numbers and {problem.numbers for problem in watched} <= held_out


def test_seconds_of_several_processes_are_added():
    history = [{"cpu_seconds": seconds} for seconds in (1.0, 4.0, 0.5, 2.0, 2.0)]
    assert grpo_lessons.cpu_seconds(history) == 6.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"updates": 0}, "expected updates of at least 1, got 0"),
        ({"completions": 1}, "expected completions of at least 2"),
        ({"steps": 7}, "steps must divide 64, got 7"),
        ({"learning_rate": float("inf")}, "expected a finite learning_rate above 0"),
        ({"beta": -1.0}, "expected a finite beta of at least 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        grpo_lessons.Settings(**settings)
