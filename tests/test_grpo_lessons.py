"""The benchmark of diffu-GRPO on the lessons, on a model of one tiny layer and a few updates."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import ModernBertConfig, ModernBertForMaskedLM

from benchmarks import grpo_lessons
from benchmarks.plot import published
from dllm.demo.training.lessons import MAX_LENGTH, vocabulary
from dllm.demo.training.questions import TASKS

pytest.importorskip("accelerate")
pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = "--updates 3 --prompts 2 --completions 2 --steps 4 --sums 8 --questions 2 --watched 2".split()


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


@pytest.mark.curve
def test_an_interrupted_run_goes_on_and_a_finished_one_is_not_repeated(run, tmp_path, monkeypatch):
    status, last = run("whole")
    assert status == 0
    row, results = json.loads(Path(last["row"]).read_text()), last["results"]
    assert (row["kind"], row["results"]) == ("grpo_lessons", results)
    for scores in (results["before"], results["after"]):
        asked = [(score["task"], score["gen_length"], score["tokens_per_step"]) for score in scores]
        assert asked == [("sums-in-words", 16, 1), ("sums-in-words", 16, 2), ("problems", 64, 1)]
    updates = {name: [update for update, _ in curve] for name, curve in results["curves"].items()}
    assert updates["rewards/exact"] == updates["kl"] == [1, 2, 3] and updates["eval_rewards/exact"] == [0, 1, 2, 3]
    assert results["cpu_seconds"] > 0
    points = published.points_of("grpo.svg", [row])
    assert "reward" in published.write("grpo.svg", points, tmp_path).read_text()
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


def test_rewards_read_the_last_number_and_the_equation():
    replies = ["18 + 30 = 48.", "18 + 30 = 47. ", "30 + 18 = 48.", "It is 48, not 44.", "48", ""]
    completions = [[{"role": "assistant", "content": reply}] for reply in replies]
    assert grpo_lessons.exact(completions, answer=[48] * 6) == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert grpo_lessons.equation(completions, terms=[(18, 30)] * 6) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_no_sum_that_is_asked_is_trained_on():
    trained, watched = (grpo_lessons.rows(2000, seed, held_out=seed == 2) for seed in (0, 2))
    asked = {question.text for question in TASKS["sums-in-words"](2000, grpo_lessons.HELD_OUT_SEED)}
    assert {row["prompt"][0]["content"] for row in watched} & asked
    texts = [[row["prompt"][0]["content"] for row in trained], asked]
    numbers = [{tuple(sorted(re.findall(r"\d+", text))) for text in part} for part in texts]
    assert len(numbers[0]) > 400 and not numbers[0] & numbers[1]


def test_seconds_of_several_processes_are_added():
    history = [{"cpu_seconds": seconds} for seconds in (1.0, 4.0, 0.5, 2.0, 2.0)]
    assert grpo_lessons.cpu_seconds(history) == 6.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"updates": 0}, "expected updates of at least 1, got 0"),
        ({"completions": 1}, "expected completions of at least 2"),
        ({"steps": 7}, "steps must divide 16, got 7"),
        ({"learning_rate": float("inf")}, "expected a finite learning_rate above 0"),
        ({"beta": -1.0}, "expected a finite beta of at least 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        grpo_lessons.Settings(**settings)
