"""Training on small official checkpoints: loss and gradients of a step against the objectives in plain PyTorch."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

from tests.core import test_bd3lm as bd3lm
from tests.core import test_mdlm as mdlm
from tests.core.reference import Objective
from tests.core.runs import Gradients, losses, samples_of, trainer_of
from tests.families import toys
from tests.families.toys import NAMES

pytestmark = pytest.mark.usefixtures("one_thread")

SHIFTED = ("dream", "rnd1")
V4 = transformers.__version__.startswith("4.")


def load(name: str, **options) -> torch.nn.Module:
    if name == "llada2" and V4:
        pytest.skip("the experts of GLM-4-MoE in transformers 4 have no float64, which the truth is computed in")
    return toys.load(name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_mdlm(name, tmp_path, caplog):
    """A model of blocks is trained to attend to whole rows, which one warning says."""
    model, samples, watch = load(name), samples_of(8), Gradients()
    objective, before = Objective(right_shift=name in SHIFTED), copy.deepcopy(model)
    options = dict(per_device_train_batch_size=8, num_train_epochs=1)
    trainer = trainer_of(tmp_path, model, samples, objective, callbacks=[watch], **options)
    trainer.train()
    mdlm.check(trainer, watch.seen, before, samples, objective)
    warned = sum("BD3LMTrainer keeps its blocks" in record.message for record in caplog.records)
    assert warned == (name == "llada2")


@pytest.mark.parametrize("name", NAMES)
def test_bd3lm(name, tmp_path, caplog):
    model, samples, objective = load(name), samples_of(4), Objective(right_shift=name in SHIFTED)
    exact, plain = bd3lm.both(model, samples, objective)
    bd3lm.check(*bd3lm.trainer_of(tmp_path, model, samples, objective), exact, plain)
    assert "whole rows" not in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_learns(name, tmp_path):
    """A LoRA adapter alone is trained, and a sample's loss falls."""
    model, samples = load(name, lora=True, r=4, lora_alpha=16, target_modules="q_proj,v_proj"), samples_of(1) * 8
    weights = {key: weight.clone() for key, weight in model.named_parameters() if not weight.requires_grad}
    options = dict(per_device_train_batch_size=8, max_steps=15, learning_rate=2e-2)
    objective = Objective(right_shift=name in SHIFTED, weight="uniform")
    trainer = trainer_of(tmp_path, model, samples, objective, **options)
    trainer.train()
    assert sum(losses(trainer)[-5:]) < 0.8 * sum(losses(trainer)[:5])
    assert all(torch.equal(weights[key], weight) for key, weight in model.named_parameters() if key in weights)
