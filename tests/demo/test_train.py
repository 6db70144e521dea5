"""The shipped model's training script: its gradients, its masks, and runs that are interrupted."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForMaskedLM, AutoTokenizer

from dllm.demo import train
from dllm.demo.lessons import Lessons, vocabulary
from dllm.demo.train import Settings, Workers, masked, new_model

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(importlib.util.find_spec("chatterbot_corpus") is None, reason="chatterbot-corpus not installed"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return vocabulary()


@pytest.fixture(scope="module")
def batch(tokenizer):
    return Lessons(tokenizer, batch_size=9, seed=0)[0][0]  # six word problems


class TestMasks:
    def test_only_answers_are_masked_and_the_rest_is_kept(self, batch):
        canvas, chosen = masked(batch, mask_id=0, seed=1)
        assert not (chosen & ~batch.answer).any()
        assert torch.equal(canvas == 0, chosen)
        assert torch.equal(canvas[~chosen], batch.tokens[~chosen])

    def test_every_share_is_as_likely(self, batch):
        shares = torch.stack([masked(batch, 0, seed)[1].sum(1) / batch.answer.sum(1) for seed in range(400)])
        counts = torch.histc(shares, bins=4, min=0, max=1) / shares.numel()
        assert (counts - 0.25).abs().max() < 0.04  # over four standard deviations; t is spread over the rows besides

    def test_another_seed_masks_others(self, batch):
        assert not torch.equal(masked(batch, 0, 1)[1], masked(batch, 0, 2)[1])
        assert torch.equal(masked(batch, 0, 1)[1], masked(batch, 0, 1)[1])


class TestWorkers:
    @pytest.mark.parametrize("count", [1, 2, 5, 8])  # 8: more threads than rows
    def test_gradient_is_that_of_the_mean_over_masked_tokens(self, tokenizer, batch, count, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: count)
        monkeypatch.setattr(torch, "autocast", lambda *_: torch.enable_grad())  # float32, to compare
        torch.manual_seed(0)
        model = new_model(tokenizer)
        canvas, chosen = masked(batch, tokenizer.mask_token_id, seed=3)
        parts = [tuple(x[some] for x in (canvas, chosen, batch.tokens)) for some in (slice(4), slice(4, None))]
        loss = Workers(model).backward(parts)
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        expected = F.cross_entropy(model(input_ids=canvas).logits[chosen], batch.tokens[chosen])
        expected.backward()
        torch.testing.assert_close(loss, expected.detach())
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-6)

    def test_nothing_masked(self, tokenizer, batch):
        model = new_model(tokenizer)
        loss = Workers(model).backward([(batch.tokens, torch.zeros_like(batch.answer), batch.tokens)])
        assert loss == 0
        assert all((parameter.grad == 0).all() for parameter in model.parameters())


class TestRuns:
    SMALL = ("--steps", "6", "--batch-size", "3", "--device", "cpu")

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        monkeypatch.setattr(train, "LOG_EVERY", 2)
        monkeypatch.setattr(train, "SAVE_EVERY", 2)
        monkeypatch.setattr(train, "EVALUATE_EVERY", 1000)
        monkeypatch.setattr(train, "EVALUATION_PROBLEMS", 1)

    def rows(self, folder) -> list[dict]:
        lines = (folder / "log.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]

    def test_interrupted_run_ends_like_an_undisturbed_one(self, tmp_path, monkeypatch, capsys):
        train.main([str(tmp_path / "whole"), *self.SMALL])
        section = train.Run._section

        def interrupted(run, end):
            if run.step == 4:
                raise KeyboardInterrupt
            section(run, end)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(train.Run, "_section", interrupted)
            train.main([str(tmp_path / "broken"), *self.SMALL])
        with (tmp_path / "broken" / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": 5, "loss": 9.9, "seconds": 1.0}) + "\n")  # logged, but not saved
        train.main([str(tmp_path / "broken"), *self.SMALL])
        assert "continued after step 4" in capsys.readouterr().out
        assert self.rows(tmp_path / "broken") == self.rows(tmp_path / "whole")
        whole, broken = (
            AutoModelForMaskedLM.from_pretrained(tmp_path / name / "model") for name in ("whole", "broken")
        )
        for one, other in zip(whole.parameters(), broken.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_what_is_saved(self, tmp_path):
        train.main([str(tmp_path), *self.SMALL])
        model = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
        assert model.dtype == torch.float16
        assert AutoTokenizer.from_pretrained(tmp_path / "model").mask_token == "[MASK]"
        last = self.rows(tmp_path)[-1]
        assert last["step"] == 6 and last["accuracy"] == 0

    def test_other_settings_are_another_run(self, tmp_path, capsys):
        train.main([str(tmp_path), *self.SMALL])
        with pytest.raises(SystemExit) as end:
            train.main([str(tmp_path), *self.SMALL, "--seed", "1"])
        assert end.value.code == 2
        assert "another folder" in capsys.readouterr().err

    def test_a_loss_that_explodes_stops_the_run(self, tmp_path):
        with pytest.raises(FloatingPointError, match="between steps"):
            train.main([str(tmp_path), *self.SMALL, "--other-lr", "1e38"])

    @pytest.mark.parametrize(
        ("settings", "rule"),
        [
            ({"steps": 0}, "steps of at least 1, got 0"),
            ({"batch_size": -1}, "batch_size of at least 1, got -1"),
            ({"matrix_lr": 0.0}, "finite matrix_lr above 0, got 0.0"),
            ({"other_lr": float("nan")}, "finite other_lr above 0, got nan"),
        ],
    )
    def test_settings_out_of_range(self, settings, rule):
        with pytest.raises(ValueError, match=rule):
            Settings(**settings)
