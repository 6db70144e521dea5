"""The gauge of quality: that it tells right from wrong, and that the bundled model is worth measuring with."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from transformers import AutoModelForMaskedLM

from dllm.demo import samplers
from dllm.demo.shipped import SHIPPED, load_shipped
from dllm.demo.training import gauge
from dllm.demo.training.problems import final_answer

LARGEST_BYTES = 8_000_000


@pytest.fixture(scope="module")
def shipped(device):
    return load_shipped(device)


@pytest.fixture(scope="module")
def one_token_a_step(shipped):
    """20 of the 500 problems; the card says what all of them give."""
    return gauge.measure(*shipped, questions=20)


class TestShippedModel:
    def test_solves_problems_it_never_saw(self, one_token_a_step):
        assert one_token_a_step.accuracy >= 0.8
        assert one_token_a_step.forwards == 64
        assert 0.5 < one_token_a_step.tokens_per_forward < 1

    def test_more_tokens_a_step_cost_answers(self, shipped, one_token_a_step):
        eight = gauge.measure(*shipped, questions=20, tokens_per_step=8)
        assert eight.accuracy <= one_token_a_step.accuracy - 0.1

    def test_is_small_and_half_precision(self):
        assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= LARGEST_BYTES
        assert AutoModelForMaskedLM.from_pretrained(SHIPPED).dtype == torch.float16
        assert (SHIPPED / "curve.png").read_bytes().startswith(b"\x89PNG")
        assert not list(SHIPPED.glob("*.bin"))  # safetensors only

    def test_its_card_says_what_it_answers(self, shipped):
        card = (SHIPPED / "README.md").read_text(encoding="utf-8")
        code = card.partition("```python\n")[2].partition("```")[0]
        quoted = card.partition("\n> ")[2].partition("\n")[0]
        variables: dict[str, object] = {}
        exec(code, variables)
        assert variables["replies"] == [quoted]
        assert final_answer(quoted) == 72


class TestMeasure:
    def test_counts_exact_answers(self, shipped):
        asked, answered = [], []

        def listen(questions, replies):
            asked.extend(questions)
            answered.extend(replies)

        score = gauge.measure(*shipped, questions=7, batch_size=3, tokens_per_step=4, on_batch=listen)
        assert len(asked) == len(answered) == score.questions == 7
        assert score.correct == sum(final_answer(r) == q.answer for q, r in zip(asked, answered, strict=True))
        assert score.forwards == 16

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_batches_change_nothing(self, shipped, temperature):
        replies = {}
        for size in (1, 5):
            told: list[str] = []
            gauge.measure(
                *shipped,
                questions=5,
                batch_size=size,
                tokens_per_step=4,
                temperature=temperature,
                on_batch=lambda _, texts, told=told: told.extend(texts),
            )
            replies[size] = told
        assert replies[1] == replies[5]

    @pytest.mark.parametrize("sampler", [name for name in samplers.SAMPLERS if not samplers.keeps_cache(name)])
    def test_every_sampler_answers(self, shipped, sampler):
        """Those that count take 8 tokens a step, which is cheap; a prompt's end is found in each layout."""
        counted = {"tokens_per_step": 8} if samplers.steps_of(sampler) else {}
        told: list[str] = []
        questions = {"questions": 3, "batch_size": 3, "on_batch": lambda _, texts: told.extend(texts)}
        score = gauge.measure(*shipped, sampler=sampler, **counted, **questions)
        assert all(reply.endswith(".") or final_answer(reply) is not None for reply in told)
        assert 1 <= score.forwards <= 64
        if counted and not samplers.is_approximate(sampler):
            assert score.forwards <= 8

    @pytest.mark.parametrize("sampler", [name for name in samplers.SAMPLERS if samplers.keeps_cache(name)])
    def test_a_model_without_a_cache_is_refused(self, shipped, sampler):
        with pytest.raises(ValueError, match="ModernBertForMaskedLM keeps no cache"):
            gauge.measure(*shipped, sampler=sampler, questions=1)

    def test_a_threshold_beyond_reach_is_one_token_a_step(self, shipped):
        replies: dict[str, list[str]] = {"generate": [], "threshold": []}
        for sampler, told in replies.items():
            options = {"threshold": 2.0} if sampler == "threshold" else {}
            gauge.measure(
                *shipped,
                questions=2,
                sampler=sampler,
                on_batch=lambda _, texts, told=told: told.extend(texts),
                **options,
            )
        assert replies["threshold"] == replies["generate"]

    def test_a_threshold_keeps_the_answers_at_a_tenth_of_the_forwards(self, shipped):
        """All 500: benchmarks/results; one token a step answers 90 % of them in 64 forward passes."""
        score = gauge.measure(*shipped, questions=50, sampler="threshold", threshold=0.9)
        assert score.accuracy >= 0.8
        assert score.tokens_per_forward >= 3

    def test_forwards_are_those_of_a_question_alone(self, shipped):
        together, alone = (
            gauge.measure(*shipped, questions=5, batch_size=size, sampler="threshold", threshold=0.95).forwards
            for size in (5, 1)
        )
        assert together == alone

    def test_a_wrong_answer_does_not_count(self, shipped, monkeypatch):
        model, tokenizer = shipped
        wrong = gauge.Question("What is 2 * 3?", 7, final_answer), gauge.Question("What is 2 * 3?", 6, final_answer)
        monkeypatch.setitem(gauge.TASKS, "problems", lambda count, seed: list(wrong))
        assert gauge.measure(model, tokenizer, questions=2).correct == 1

    @pytest.mark.parametrize(
        ("options", "error", "rule"),
        [
            (
                {"task": "poetry"},
                ValueError,
                "task must be one of problems, new-phrasings, sums-in-words, small-talk, got 'poetry'",
            ),
            ({"questions": 0}, ValueError, "questions must be at least 1, got 0"),
            ({"questions": True}, TypeError, "questions must be an integer, got True"),
            ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
            ({"tokens_per_step": 3}, ValueError, "tokens_per_step must divide gen_length 64, got 3"),
            ({"gen_length": 200}, ValueError, "gen_length must be less than the model's 192 positions, got 200"),
            ({"temperature": -1.0}, ValueError, "temperature"),
            ({"remasking": "no"}, ValueError, "remasking must be one of"),
            ({"stepz": 3}, TypeError, "stepz"),
            ({"sampler": "luck"}, ValueError, "sampler must be one of generate, mdlm"),
            ({"sampler": "threshold", "tokens_per_step": 2}, ValueError, "tokens_per_step must be None"),
            ({"sampler": "threshold", "threshold": -1.0}, ValueError, "threshold"),
            ({"sampler": "llada2", "tokens_per_step": 5, "block_length": 32}, ValueError, "divide block_length 32"),
            ({"sampler": "mdlm", "stepz": 3}, TypeError, "stepz"),
        ],
    )
    def test_bad_options(self, shipped, options, error, rule):
        with pytest.raises(error, match=rule):
            gauge.measure(*shipped, **{"questions": 2, **options})

    def test_more_small_talk_than_there_is(self, shipped):
        pytest.importorskip("chatterbot_corpus")
        with pytest.raises(ValueError, match="at most the 611 lines of small talk, got 612"):
            gauge.measure(*shipped, questions=612, task="small-talk")


class TestScore:
    @pytest.mark.parametrize(
        ("questions", "correct", "low", "high"),
        [(10, 0, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (500, 450, 0.87058, 0.92332)],
    )
    def test_wilsons_interval(self, questions, correct, low, high):
        score = gauge.Score(questions, correct, forwards=1.0, tokens=1.0, seconds=1.0)
        assert score.interval == pytest.approx((low, high), abs=2e-5)


class TestProgram:
    def test_prints_for_people_and_programs(self, capsys):
        assert gauge.main(["--questions", "4", "--tokens-per-step", "4", "--device", "cpu"]) == 0
        lines = capsys.readouterr().out.strip().splitlines()
        assert "4 questions (problems), 4 tokens per step, temperature 0" in lines[0]
        assert [line.split()[0] for line in lines[1:5]] == ["exact", "forward", "tokens", "seconds"]
        row = json.loads(lines[-1])
        assert row["forwards"] == 16
        assert row["questions"] == 4
        assert row["model"] == "shipped"

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--tokens-per-step", "5"],
            ["--block-length", "0"],
            ["--model", "/no/such/folder"],
            ["--impl", "magic"],
            ["--threshold", "0.9"],
            ["--sampler", "threshold", "--factor", "1"],
            ["--sampler", "threshold", "--tokens-per-step", "2"],
        ],
    )
    def test_options_that_make_no_sense(self, arguments, capsys):
        assert gauge.main(["--questions", "2", "--device", "cpu", *arguments]) == 2
        assert "dllm.demo.training.gauge:" in capsys.readouterr().err

    def test_samplers_that_trade_tokens_for_speed_say_so(self, capsys):
        arguments = ["--questions", "2", "--device", "cpu", "--sampler", "threshold", "--threshold", "0.7"]
        assert gauge.main(arguments) == 0
        lines = capsys.readouterr().out.strip().splitlines()
        assert "2 questions (problems), threshold (approximate), threshold 0.7, temperature 0" in lines[0]
        row = json.loads(lines[-1])
        assert (row["sampler"], row["threshold"], row["approximate"]) == ("threshold", 0.7, True)
        assert "tokens_per_step" not in row

    def test_unknown_option(self):
        with pytest.raises(SystemExit) as end:
            gauge.main(["--quest", "2"])
        assert end.value.code == 2


def test_every_task_is_a_list_of_questions():
    tasks = [name for name in gauge.TASKS if name != "small-talk" or importlib.util.find_spec("chatterbot_corpus")]
    for name in tasks:
        questions = gauge.TASKS[name](3, 0)
        assert len({question.text for question in questions}) == 3
        assert questions == gauge.TASKS[name](3, 0)
        assert questions != gauge.TASKS[name](3, 1)
