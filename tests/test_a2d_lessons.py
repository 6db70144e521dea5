"""The benchmark of what causal pre-training is worth, on a model of one tiny layer and a few steps."""

import json
import math
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks import a2d_lessons
from dllm.demo.training import gauge
from dllm.demo.training.curriculum import Curriculum
from dllm.demo.training.lessons import Lessons, vocabulary
from dllm.demo.training.questions import TASKS
from dllm.models import get_model

pytestmark = pytest.mark.usefixtures("one_thread")

COUNTS = "--causal-steps 3 --steps 3 --block-steps 3 --batch-size 4 --questions 2"
SMALL = [*COUNTS.split(), "--block-size", "16", "--tokens-per-step", "16"]
SETTINGS = a2d_lessons.Settings(3, 3, 3, 4, 16, 2, 16)


@pytest.fixture(scope="module")
def tokenizer():
    return vocabulary()


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the program with tiny models in the test's folder; returns the exit code and what the last line says."""
    monkeypatch.setattr(a2d_lessons, "causal_model", tiny_causal_model)
    monkeypatch.setattr(a2d_lessons, "HELD_OUT_STEPS", 1)

    def call(*arguments):
        status = a2d_lessons.main([str(tmp_path / "run"), *arguments, "--out", str(tmp_path / "rows")])
        printed = capsys.readouterr()
        return status, json.loads(printed.out.splitlines()[-1]) if status == 0 else printed.err

    return call


def tiny_causal_model(tokenizer):
    size = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8)
    size |= dict(num_key_value_heads=2, vocab_size=len(tokenizer), max_position_embeddings=192)
    ends = dict(pad_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    config = transformers.Qwen3Config(**size, **ends, tie_word_embeddings=True, attn_implementation="eager")
    return transformers.Qwen3ForCausalLM(config)


def test_all_models_learn_from_their_own_weights(run, tmp_path, monkeypatch):
    asked = []
    measure = gauge.measure
    monkeypatch.setattr(gauge, "measure", lambda *given, **options: asked.append(options) or measure(*given, **options))
    status, last = run(*SMALL)
    assert status == 0
    results = last["results"]
    row = json.loads(Path(last["row"]).read_text())
    assert (row["kind"], row["results"]) == ("a2d_lessons", results)
    objectives = {name: (result["objective"], result["steps"]) for name, result in results.items()}
    assert objectives == {
        "causal": ("causal", 3),
        "converted": ("mdlm", 3),
        "random": ("mdlm", 3),
        "converted-blocks": ("bd3lm", 3),
        "random-longer": ("mdlm", 6),
    }
    assert all(result["loss_after"] < result["loss_before"] for result in results.values())
    assert results["random"]["loss_before"] == results["random-longer"]["loss_before"]
    assert results["random"]["loss_before"] == pytest.approx(
        math.log(2048) / 2, rel=0.1
    )  # half of the tokens are masked
    assert results["converted"]["loss_before"] < results["random"]["loss_before"]  # three causal steps
    kinds = [(options.get("sampler"), options.get("block_length")) for options in asked]
    assert kinds == [(None, None)] * 4 + [("bd3lm", 16)] * 2 + [(None, None)] * 2  # before and after, each
    learnt = {name: get_model(model_name_or_path=str(tmp_path / "run" / name)).state_dict() for name in [*results][1:]}
    blocks, converted = learnt["converted-blocks"], learnt["converted"]
    assert blocks.keys() == converted.keys()
    assert any(not torch.equal(blocks[name], converted[name]) for name in blocks)

    def again(*_):
        raise AssertionError("this has been done")

    monkeypatch.setattr(a2d_lessons, "learn_causally", again)
    monkeypatch.setattr(a2d_lessons, "learn_by_diffusion", again)
    assert run(*SMALL)[1]["results"] == results
    assert [*run(*SMALL, "--arm", "random")[1]["results"]] == ["causal", "random"]
    status, message = run(*SMALL, "--seed", "1")
    assert status == 2 and "expected the settings of the run" in message


def test_the_block_trainer_sees_blocks_of_the_lessons(tokenizer, tmp_path):
    """Its rows are [x_t ; x_0]."""
    model = tiny_causal_model(tokenizer)
    run = a2d_lessons.trainer("bd3lm", model, tokenizer, tmp_path, 3, SETTINGS)
    batch = next(iter(run.get_train_dataloader()))
    lesson = run.train_dataset[0]["input_ids"]
    assert run.block_size == 16
    assert torch.equal(batch["input_ids"][:, lesson.shape[1] :], lesson)
    assert (batch["input_ids"][:, : lesson.shape[1]] == tokenizer.mask_token_id).any()


def test_causal_labels_are_what_diffusion_may_mask(tokenizer):
    """Tails with addends of other problems are in the data from two thirds of a run on: no label lies before a tail."""
    lessons = Lessons(tokenizer, batch_size=8, seed=0, steps=30)
    problems = lessons[25][0]
    batches = [
        a2d_lessons.causal_batch([Curriculum(lessons, steps=30, processes=1)[75 + forward]]) for forward in range(3)
    ]
    assert all(batch.keys() == {"input_ids", "labels"} for batch in batches)
    row = int((problems.tail >= 0).nonzero()[0])
    labels = batches[0]["labels"][row]
    assert (labels != -100).nonzero()[0] == problems.tail[row]
    assert torch.equal(labels[labels != -100], problems.tokens[row, problems.tail[row] :])


class HalfRight:
    """Answers every other question, and ends its answers."""

    def __init__(self, tokenizer, questions):
        self.tokenizer, self.answers, self.asked = tokenizer, {q.text: q.answer for q in questions}, 0

    def eval(self):
        return self

    def generate(self, *, input_ids, attention_mask, max_new_tokens, do_sample):
        rows = []
        for prompt, kept in zip(input_ids, attention_mask, strict=True):
            text = self.tokenizer.decode(prompt[kept == 1])
            answer = next(value for question, value in self.answers.items() if question in text)
            self.asked += 1
            rows.append(self.tokenizer(f"The answer is {answer + self.asked % 2}.").input_ids)
        end = self.tokenizer.eos_token_id
        made = torch.tensor([row + [end] * (max_new_tokens - len(row)) for row in rows])
        return torch.cat([input_ids, made], dim=1)


def test_causal_accuracy(tokenizer):
    model = HalfRight(tokenizer, TASKS["problems"](60, a2d_lessons.HELD_OUT_SEED))
    score = a2d_lessons.causal_accuracy(model, tokenizer, a2d_lessons.Settings(questions=60))
    assert (score.questions, score.correct, model.asked) == (60, 30, 60)
    assert score.forwards == score.tokens == len(tokenizer("The answer is 42.").input_ids) + 1  # and the end


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "expected steps of at least 1, got 0"),
        ({"block_size": 24}, "block_size must divide 64, got 24"),
        ({"tokens_per_step": 3}, "tokens_per_step must divide 64, got 3"),
        ({"tokens_per_step": 32}, "tokens_per_step must divide block_size 16, got 32"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        a2d_lessons.Settings(**settings)
