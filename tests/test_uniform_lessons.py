"""The benchmark of uniform diffusion on the lessons, on a model of one tiny layer and a few steps."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import uniform_lessons
from dllm.core.samplers import DiffusionGemmaSampler
from dllm.demo.training.lessons import vocabulary
from dllm.demo.training.questions import TASKS
from tests.diffusion_gemma_models import needs_diffusion_gemma

pytestmark = [needs_diffusion_gemma, pytest.mark.usefixtures("one_thread")]

SMALL = "--steps 3 --batch-size 4 --hidden 32 --layers 1 --canvas 8 --questions 2".split()


@pytest.fixture(scope="module")
def tokenizer():
    return vocabulary()


def test_a_run(tmp_path, monkeypatch, capsys):
    """Losses fall, scores are there for each setting; the same command goes on, with other settings it refuses."""
    monkeypatch.setattr(uniform_lessons, "HELD_OUT_STEPS", 1)
    monkeypatch.setattr(uniform_lessons, "SAMPLINGS", ((2, 0.1), (1, 1.0)))

    def run(*words):
        status = uniform_lessons.main([str(tmp_path / "run"), *SMALL, *words, "--out", str(tmp_path / "rows")])
        printed = capsys.readouterr()
        return status, json.loads(printed.out.splitlines()[-1]) if status == 0 else printed.err

    status, last = run()
    assert status == 0
    results, row = last["results"], json.loads(Path(last["row"]).read_text())
    assert (row["kind"], row["results"]) == ("uniform_lessons", results)
    before, after = results["before"], results["after"]
    assert before["losses"].keys() == after["losses"].keys() == {"loss", "nll", "encoder_nll"}
    assert after["losses"]["loss"] < before["losses"]["loss"]
    assert before["losses"]["loss"] == pytest.approx(before["losses"]["nll"] + before["losses"]["encoder_nll"])
    assert [(score["steps"], score["entropy_bound"]) for score in after["scores"]] == [(2, 0.1), (1, 1.0)]
    assert (tmp_path / "run" / "model" / "tokenizer.json").exists()
    monkeypatch.setattr(uniform_lessons, "learn", lambda *_: pytest.fail("this has been done"))
    assert run()[1]["results"] == results
    status, message = run("--seed", "1")
    assert status == 2 and "expected the settings of the run" in message


def test_samples_are_the_lessons(tokenizer):
    """Labels begin where an answer does and end with its end token; sums come late, and there are no tails."""
    lessons, end = uniform_lessons.UniformLessons(tokenizer, steps=40, batch_size=10, seed=0), tokenizer.eos_token_id
    assert len(lessons) == 120
    for step in (0, 15, 39):
        assert len(lessons.lessons.lessons[step]) == (3 if step == 39 else 2)
        assert all(bool((batch.tail < 0).all()) for batch in lessons.lessons.lessons[step])
        for item in range(3 * step, 3 * step + 3):
            lesson = lessons[item]
            for tokens, labels in zip(lesson["input_ids"].tolist(), lesson["labels"].tolist(), strict=True):
                learnt = [place for place, label in enumerate(labels) if label != -100]
                assert learnt == list(range(learnt[0], learnt[-1] + 1))
                assert [labels[place] for place in learnt] == [tokens[place] for place in learnt]
                assert labels[learnt[-1]] == end and labels.count(end) == 1
    assert not torch.equal(lessons[0]["seeds"], lessons[3]["seeds"])


def test_accuracy_counts_exact_answers(tokenizer, monkeypatch):
    """Answers are read from what follows each prompt: every other one is right, after 7 forwards and 9 tokens."""
    model = uniform_lessons.new_model(tokenizer, uniform_lessons.Settings(hidden=32, layers=1, canvas=8))
    asked, calls = TASKS["problems"](60, uniform_lessons.HELD_OUT_SEED), []

    def sample(self, prompts, *, seed, return_dict, keep_histories, **options):
        calls.append((len(prompts), seed[0], options))
        answers = [asked[number].answer + number % 2 for number in range(seed[0] - 1, seed[0] - 1 + len(prompts))]
        end = tokenizer.eos_token_id
        rows = [[*p.tolist(), *tokenizer(f"It is {a}.").input_ids, end] for p, a in zip(prompts, answers, strict=True)]
        width = max(map(len, rows))
        stats = type("Stats", (), {"row_forwards": [7] * len(rows), "useful_tokens": 9 * len(rows)})
        sequences = torch.tensor([row + [end] * (width - len(row)) for row in rows])
        return type("Output", (), {"sequences": sequences, "stats": stats})

    monkeypatch.setattr(DiffusionGemmaSampler, "sample", sample)
    score = uniform_lessons.accuracy(model, tokenizer, asked, 48, 0.1)
    assert (score["questions"], score["correct"], score["forwards"]) == (60, 30, 7.0)
    assert [call[:2] for call in calls] == [(50, 1), (10, 51)]
    assert calls[0][2] == dict(max_new_tokens=64, max_denoising_steps=48, entropy_bound=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "expected steps of at least 1, got 0"),
        ({"canvas": 0}, "expected canvas of at least 1, got 0"),
        ({"hidden": 40}, "expected hidden as a multiple of 32, got 40"),
        ({"other_lr": float("nan")}, "expected a finite other_lr above 0, got nan"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        uniform_lessons.Settings(**settings)
