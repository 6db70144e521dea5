"""The benchmark of Edit Flows on the lessons, on a model of one tiny layer and a few steps."""

import json
from pathlib import Path

import pytest
import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

from benchmarks import edit_lessons
from benchmarks.plot import published
from dllm.core.samplers import EditFlowSampler
from dllm.demo.training.lessons import MAX_LENGTH, vocabulary
from dllm.demo.training.questions import TASKS
from dllm.models import EditFlowModel, get_model

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = "--steps 3 --batch-size 4 --mask-length 6 --questions 2".split()


@pytest.fixture(scope="module")
def tokenizer():
    return vocabulary()


def tiny_edit_model(tokenizer):
    torch.manual_seed(0)
    size = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ends = dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), 4)
    size |= dict(vocab_size=len(tokenizer), max_position_embeddings=MAX_LENGTH, global_attn_every_n_layers=1)
    config = ModernBertConfig(**size, **ends, attn_implementation="eager")
    return EditFlowModel.from_backbone(ModernBertForMaskedLM(config)), tokenizer


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, tokenizer):
    """Runs the program with a tiny model in the test's folder; returns the exit code and what the last line says."""
    monkeypatch.setattr(edit_lessons, "edit_model", lambda: tiny_edit_model(tokenizer))
    monkeypatch.setattr(edit_lessons, "HELD_OUT_STEPS", 1)
    monkeypatch.setattr(edit_lessons, "SAMPLINGS", ((0.25, 0.0), (0.1, 1.0)))
    monkeypatch.setattr(edit_lessons, "SHOWN_PROBLEMS", 1)

    def call(*arguments):
        status = edit_lessons.main([str(tmp_path / "run"), *arguments, "--out", str(tmp_path / "rows")])
        printed = capsys.readouterr()
        return status, json.loads(printed.out.splitlines()[-1]) if status == 0 else printed.err

    return call


def test_both_arms_learn_from_the_same_weights(run, tmp_path, monkeypatch):
    status, last = run(*SMALL)
    assert status == 0
    results, row = last["results"], json.loads(Path(last["row"]).read_text())
    assert (row["kind"], row["results"]) == ("edit_lessons", results)
    assert {name: result["masks"] for name, result in results.items()} == {"masks": 6, "empty": 0}
    for name, result in results.items():
        assert result["loss_after"] < result["loss_before"]
        assert [(score["tau"], score["temperature"]) for score in result["after"]] == [(0.25, 0.0), (0.1, 1.0)]
        assert all(score["questions"] == 2 for score in [result["before"], *result["after"]])
        assert len(result["lengths"]) == 3
        for shown in result["lengths"]:
            assert (shown["times"][0], shown["times"][-1], shown["lengths"][0]) == (0.0, 1.0, result["masks"])
            assert len(shown["times"]) == len(shown["lengths"]) and shown["times"] == sorted(shown["times"])
        saved = get_model(model_name_or_path=str(tmp_path / "run" / name))
        assert saved.config.kappa_scheduler == {"name": "LinearKappaScheduler"}
    (points,) = [published.points_of("edit_lengths.svg", [row])]
    drawn = published.write("edit_lengths.svg", points, tmp_path).read_text()
    assert "6 masks" in drawn and "nothing" in drawn and "6 * 7" in drawn
    monkeypatch.setattr(edit_lessons, "learn", lambda *_: pytest.fail("this has been done"))
    assert run(*SMALL)[1]["results"] == results
    assert [*run(*SMALL, "--arm", "empty")[1]["results"]] == ["empty"]
    status, message = run(*SMALL, "--seed", "1")
    assert status == 2 and "expected the settings of the run" in message


@pytest.mark.parametrize("masks", [0, 60])
def test_pairs_are_the_lessons(masks, tokenizer):
    """In step 15 conversations are long, so that not all masks fit; no answer is cut, and nothing follows its end."""
    lessons = edit_lessons.EditLessons(tokenizer, steps=40, batch_size=10, seed=0, masks=masks)
    assert len(lessons) == 80
    longest = 0
    for item in range(len(lessons)):
        lesson, (number, forward) = lessons[item], divmod(item, 2)
        batch = lessons.lessons[number][forward]
        assert len(lessons.lessons[number]) == 2 and bool((batch.tail < 0).all())  # neither sums nor tails
        for x0, x1, tokens, answer in zip(
            lesson["x0_ids"], lesson["x1_ids"], batch.tokens.tolist(), batch.answer.tolist(), strict=True
        ):
            prompt = answer.index(True)
            assert x1 == tokens[: len(x1)] and x1.index(tokenizer.eos_token_id, prompt) == len(x1) - 1
            expected = min(masks, MAX_LENGTH - prompt)
            assert x0 == tokens[:prompt] + [tokenizer.mask_token_id] * expected
            longest = max(longest, len(x0))
        times = lesson["times"].sort().values
        assert 0 <= times[0] and times[-1] < 1 - edit_lessons.EPSILON
        assert float((times[1:] - times[:-1]).max()) < 2 / len(times)  # spread evenly
    assert longest == MAX_LENGTH if masks else longest < MAX_LENGTH
    assert not torch.equal(lessons[0]["seeds"][:2], lessons[2]["seeds"][:2])


def test_accuracy_counts_exact_answers(tokenizer, monkeypatch):
    """Answers are read from what follows each prompt: every other one is right, after 7 forwards and 9 tokens."""
    model, _ = tiny_edit_model(tokenizer)
    asked, calls = TASKS["problems"](60, edit_lessons.HELD_OUT_SEED), []

    def sample(self, prompts, *, seed, return_dict, **options):
        calls.append((len(prompts), seed[0], options))
        answers = [asked[number].answer + number % 2 for number in range(seed[0] - 1, seed[0] - 1 + len(prompts))]
        rows = [[*p.tolist(), *tokenizer(f"It is {a}.").input_ids, 4] for p, a in zip(prompts, answers, strict=True)]
        width = max(map(len, rows))
        stats = type("Stats", (), {"row_forwards": [7] * len(rows), "tokens": 9 * len(rows)})
        sequences = torch.tensor([row + [4] * (width - len(row)) for row in rows])
        return type("Output", (), {"sequences": sequences, "stats": stats})

    monkeypatch.setattr(EditFlowSampler, "sample", sample)
    score = edit_lessons.accuracy(model, tokenizer, asked, 5, 0.001, 1.0)
    assert (score["questions"], score["correct"], score["forwards"], score["tokens"]) == (60, 30, 7.0, 9.0)
    assert [call[:2] for call in calls] == [(50, 1), (10, 51)]
    assert calls[0][2] == dict(mask_length=5, tau=0.001, temperature=1.0, time_epsilon=0.0005)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "expected steps of at least 1, got 0"),
        ({"mask_length": 0}, "expected mask_length of at least 1, got 0"),
        ({"max_w": 0.0}, "expected a finite max_w above 0, got 0.0"),
        ({"matrix_lr": float("nan")}, "expected a finite matrix_lr above 0, got nan"),
        ({"kappa": "square"}, "Unknown scheduler 'square'"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        edit_lessons.Settings(**settings)
