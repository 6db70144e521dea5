"""The bundled model's training script: the gradient of a step, and runs that are interrupted."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForMaskedLM, AutoTokenizer, LlamaForCausalLM

from dllm.demo.answer import answer
from dllm.demo.shipped import load
from dllm.demo.training import lessons, train
from dllm.demo.training.lessons import Lessons, vocabulary
from dllm.demo.training.optimizer import rate
from dllm.demo.training.train import Settings, new_model
from dllm_kernels import philox
from dllm_kernels.testing import assert_model_no_worse, assert_no_worse
from tests.demo.rank import SETTINGS, first_step
from tests.environment import restored_environment
from tests.launch import two_ranks

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(importlib.util.find_spec("chatterbot_corpus") is None, reason="chatterbot-corpus not installed"),
]
ROOT = Path(__file__).parents[2]
TIMED = {"seconds", "tokens_per_second", "masked_tokens_per_second", "mfu", "peak_memory_gib"}


def uniform(seed: int, position: torch.Tensor, step: int, stream: int) -> torch.Tensor:
    words = philox.words(torch.tensor(seed), torch.tensor(0), position, torch.full_like(position, step), stream)
    return ((words[0] >> 9) + 0.5) / 2**23


@functools.cache
def plain_gradient(number: int, dtype: torch.dtype, architecture: str, late: bool) -> torch.Tensor:
    """The gradient of step `number` from all logits, written from the objective alone, a row at a time; `late` in the
    run, as the caller has set, or not."""
    torch.manual_seed(SETTINGS.seed)
    tokenizer = vocabulary()
    stream = Lessons(tokenizer, SETTINGS.batch_size, SETTINGS.seed)
    model = new_model(tokenizer, architecture).to(dtype)
    offset = uniform(SETTINGS.seed, torch.tensor(0), number, 3)  # the batch's times are (offset + row) / rows
    total, maskable = torch.zeros((), dtype=dtype), 0
    for batch in stream[number]:
        for row, (tokens, reply, tail) in enumerate(zip(batch.tokens, batch.answer, batch.tail.tolist(), strict=True)):
            position = torch.arange(len(tokens))
            may = reply & (position >= tail)
            key = (SETTINGS.seed + number).to_bytes(8, "little")
            digest = hashlib.blake2b(tokens.numpy().astype("<i8").tobytes(), digest_size=8, key=key).digest()
            t = 1.0 if tail >= 0 else (offset + row) / len(batch.tokens)
            chosen = may & (uniform(int.from_bytes(digest, "little", signed=True), position, 0, 2) < t)
            logits = model(input_ids=tokens.masked_fill(chosen, tokenizer.mask_token_id)[None]).logits[0]
            total = total + F.cross_entropy(logits[chosen], tokens[chosen], reduction="sum")
            maskable += int(may.sum())
    (total / maskable).backward()
    return torch.cat([parameter.grad.double().flatten() for parameter in model.parameters()])


class TestStep:
    @pytest.mark.parametrize(
        ("everything", "architecture"),
        [
            (True, "llama"),  # two ranks are judged with the other architecture
            pytest.param(True, "modernbert", marks=pytest.mark.exhaustive),
            pytest.param(False, "modernbert", marks=pytest.mark.exhaustive),
        ],
    )
    def test_gradient_is_that_of_the_plain_objective(self, everything, architecture, tmp_path, monkeypatch):
        gradient = first_step(tmp_path, everything=everything, architecture=architecture)
        if everything:
            self.late(monkeypatch)
        self.judge(gradient, architecture, late=everything)

    def test_two_ranks_are_one(self, tmp_path, monkeypatch):
        found = two_ranks(tmp_path, "tests.demo.rank")
        self.late(monkeypatch)
        for gradient in found:
            self.judge(gradient)

    def late(self, monkeypatch):
        for name in ("DRILL_FROM", "TAIL_FROM", "OTHER_ADDENDS_FROM"):
            monkeypatch.setattr(lessons, name, 0)

    def judge(self, gradient, architecture="modernbert", *, late=True):
        """Against float64: an error of at most twice that of the plain computation in float32."""
        exact, plain = (plain_gradient(0, dtype, architecture, late) for dtype in (torch.float64, torch.float32))
        assert_no_worse({"gradient": gradient}, {"gradient": plain}, {"gradient": exact}, entries=False)


def evaluated_shortly(patch):
    """Runs are evaluated with one problem, and the first tokens of its solution."""
    patch.setattr(train, "EVALUATION_PROBLEMS", 1)
    patch.setattr(train.gauge, "measure", functools.partial(train.gauge.measure, gen_length=8))


class TestRuns:
    SMALL = ("--steps", "4", "--batch-size", "4", "--cpu")

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        monkeypatch.setattr(train, "LOG_EVERY", 2)
        monkeypatch.setattr(train, "SAVE_EVERY", 2)
        monkeypatch.setattr(train, "EVALUATE_EVERY", 1000)
        evaluated_shortly(monkeypatch)

    def rows(self, folder) -> list[dict]:
        log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        rows = [row for row in log if "loss" in row]
        assert all(row["seconds"] > 0 for row in rows) and rows == sorted(rows, key=lambda row: row["seconds"])
        return [{name: value for name, value in row.items() if name not in TIMED} for row in rows]

    @pytest.mark.parametrize("architecture", ["modernbert", pytest.param("llama", marks=pytest.mark.exhaustive)])
    def test_interrupted_run_ends_like_an_undisturbed_one(self, architecture, tmp_path, monkeypatch, capsys):
        settings = (*self.SMALL, "--architecture", architecture)
        train.main([str(tmp_path / "whole"), *settings])

        def interrupt(watch, args, state, control, **_):
            if state.global_step == 3:  # the log is ahead of the checkpoint by then
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(train._Timer, "on_pre_optimizer_step", interrupt)
            assert train.main([str(tmp_path / "broken"), *settings]) == 130
        assert not (tmp_path / "broken" / "model").exists()
        train.main([str(tmp_path / "broken"), *settings])
        assert "continued after step 2" in capsys.readouterr().out
        rows = self.rows(tmp_path / "whole")
        assert self.rows(tmp_path / "broken") == rows and [row["step"] for row in rows] == [2, 4]
        whole, broken = (load(tmp_path / name / "model")[0] for name in ("whole", "broken"))
        for one, other in zip(whole.parameters(), broken.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_what_is_saved(self, tmp_path, monkeypatch):
        monkeypatch.setattr(train, "EVALUATE_EVERY", 2)
        train.main([str(tmp_path), "--steps", "5", *self.SMALL[2:]])  # the last step is logged, whatever its number
        model = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", dtype="auto")
        assert model.dtype == torch.float16
        assert AutoTokenizer.from_pretrained(tmp_path / "model").mask_token == "[MASK]"
        rows = self.rows(tmp_path)
        assert [(row["step"], row["accuracy"]) for row in rows] == [(2, 0), (4, 0), (5, 0)]
        assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]
        for row in rows:  # transformers 4 logs the rate of the step to come, 5 that of the step
            share = row["learning_rate"] / Settings().matrix_lr
            assert share in (pytest.approx(rate(row["step"] - 1, 5)), pytest.approx(rate(row["step"], 5)))

    def test_lessons_are_stretched_to_the_run(self, tmp_path):
        run = train.new_run(tmp_path, Settings(steps=39, batch_size=4), cpu=True)
        stream = run.train_dataset.lessons  # a hundredth of the usual length: sums from 14 on, tails from 20
        assert [len(stream[number]) for number in (13, 14)] == [2, 3]
        assert [bool((stream[number][0].tail >= 0).any()) for number in (19, 20)] == [False, True]

    def test_run_from_before_a_setting_is_continued(self, tmp_path):
        settings = Settings(steps=6, batch_size=4)
        train.new_run(tmp_path, settings, cpu=True)
        path = tmp_path / "settings.json"
        path.write_text(
            json.dumps({name: v for name, v in json.loads(path.read_text()).items() if name != "architecture"})
        )
        train.new_run(tmp_path, settings, cpu=True)
        with pytest.raises(ValueError, match="another folder"):
            train.new_run(tmp_path, replace(settings, architecture="llama"), cpu=True)

    def test_other_settings_are_another_run(self, tmp_path, capsys):
        train.new_run(tmp_path, Settings(steps=4, batch_size=4), cpu=True)
        assert train.main([str(tmp_path), *self.SMALL, "--seed", "1"]) == 2
        assert "another folder" in capsys.readouterr().err

    def test_a_loss_that_explodes_stops_the_run(self, tmp_path, capsys):
        assert train.main([str(tmp_path), *self.SMALL, "--other-lr", "1e38"]) == 1
        assert "dllm.demo.training.train: the loss has become nan by step" in capsys.readouterr().err
        assert not (tmp_path / "model").exists()

    def test_training_needs_accelerate(self, tmp_path, monkeypatch, capsys):
        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: found(name) if name != "accelerate" else None)
        with pytest.raises(SystemExit) as end:
            train.main([str(tmp_path), *self.SMALL])
        assert end.value.code == 2
        assert "pip install 'dllm[demo,train]'" in capsys.readouterr().err
        assert not any(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("settings", "rule"),
        [
            ({"architecture": "gpt"}, "architecture of modernbert, llama, got 'gpt'"),
            ({"steps": 0}, "steps of at least 1, got 0"),
            ({"batch_size": -1}, "batch_size of at least 1, got -1"),
            ({"seed": -1}, "seed from 0 up to 2.32 - 1, got -1"),
            ({"matrix_lr": 0.0}, "finite matrix_lr above 0, got 0.0"),
            ({"other_lr": float("nan")}, "finite other_lr above 0, got nan"),
        ],
    )
    def test_settings_out_of_range(self, settings, rule):
        with pytest.raises(ValueError, match=rule):
            Settings(**settings)

    def test_a_batch_too_small(self, tmp_path, capsys):
        assert train.main([str(tmp_path), "--steps", "6", "--batch-size", "3", "--cpu"]) == 2
        assert "batch_size of at least 4 for each process" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    run = tmp_path_factory.mktemp("llama")
    with restored_environment(), pytest.MonkeyPatch.context() as patch:
        evaluated_shortly(patch)
        train.main([str(run), "--architecture", "llama", "--steps", "2", "--batch-size", "4", "--cpu"])
    return run / "model"


class TestCausalArchitecture:
    """What `--architecture llama` saves, and how it is loaded again."""

    def test_its_config_says_that_it_is_not_causal(self, folder):
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"] and config["is_causal"] is False
        assert (config["dtype"], config["tie_word_embeddings"]) == ("float16", True)
        size = sum(parameter.numel() for parameter in new_model(vocabulary(), "llama").parameters())
        assert (folder / "model.safetensors").stat().st_size <= 2 * size + 10_000  # and the head is not there twice

    def test_loaded_it_sees_what_comes_later(self, folder):
        model, tokenizer = load(folder)
        tokens = torch.arange(20, 32)[None]
        other = tokens.clone()
        other[0, 9] = tokenizer.mask_token_id
        logits = model(tokens).logits
        assert not torch.equal(model(other).logits[0, 0], logits[0, 0])
        # the same from a mask of nothing, which a model without any hook takes as it is
        plain = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        open_mask = torch.zeros(1, 1, 12, 12)

        def compute(model):
            return {"logits": model(tokens, attention_mask=open_mask.to(model.dtype)).logits}

        assert_model_no_worse({"logits": logits}, compute, plain)

    def test_loaded_it_generates(self, folder):
        model, tokenizer = load(folder)
        questions = ["What is 6 * 7?", "Hello, how are you?"]
        replies, stats = answer(model, tokenizer, questions, gen_length=8, steps=8, block_length=8)
        assert len(replies) == 2 and stats.forwards == 8

    def test_one_that_is_causal_is_refused(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "causal")
        path = tmp_path / "causal" / "config.json"
        config = json.loads(path.read_text())
        del config["is_causal"]
        path.write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r'"is_causal": false in the config.json of a LlamaForCausalLM'):
            load(tmp_path / "causal")
