"""What saves memory: gradient checkpointing changes no gradient, bfloat16 costs what it costs with full logits."""

from __future__ import annotations

import copy

import pytest
import torch

from dllm_kernels.testing import assert_no_worse, assert_sum_no_worse
from tests.core.reference import Objective
from tests.core.runs import Gradients, Loose, LooseModern, model_of, samples_of, trainer_of
from tests.core.test_mdlm import truth

pytestmark = pytest.mark.usefixtures("one_thread")
# two forwards a step, one step
RUN = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=1)


def gradients_of_a_run(folder, dropout, **options):
    """Its only step's gradients, and how often the first layer ran on a batch (not on a row to look at the model)."""
    model, watch, runs = model_of(dropout=dropout), Gradients(), []
    model.bert.encoder.layer[0].attention.register_forward_hook(
        lambda _, args, out: runs.append(model.training and len(args[0]) > 1)
    )
    trainer_of(folder, model, samples_of(8), callbacks=[watch], **RUN, **options).train()
    (step,) = watch.seen
    return step, sum(runs)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_gradient_checkpointing_changes_no_bit(dropout, reentrant, tmp_path, monkeypatch):
    # inside checkpoints a CPU's dropout masks are torch's; so that the same are drawn outside, they are here
    monkeypatch.setattr("dllm.fast.training.dropout._is_ours", lambda input: False)
    step, runs = gradients_of_a_run(tmp_path, dropout)
    how = dict(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    again, rerun = gradients_of_a_run(tmp_path, dropout, **how)
    assert (runs, rerun) == (2, 4)  # every layer once more in the backward
    assert step.any() and torch.equal(step, again)


@pytest.mark.covering(1)
@pytest.mark.parametrize("kind", [Loose, LooseModern])
@pytest.mark.parametrize("norm", ["token", "sequence", "batch"])
def test_bfloat16_autocast(norm, kind, tmp_path):
    model, samples, objective, watch = model_of(kind), samples_of(8), Objective(norm=norm), Gradients()
    before = copy.deepcopy(model)
    trainer = trainer_of(tmp_path, model, samples, objective, callbacks=[watch], bf16=True, **RUN)
    trainer.train()
    loss64, nll64, exact = truth(before, samples, objective, torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss16, nll16, plain = truth(before, samples, objective, torch.float32)
    assert float((plain - exact).norm()) > 2**-9 * float(exact.norm())  # it is bfloat16
    (step,) = watch.seen
    assert_no_worse({"gradient": step}, {"gradient": plain}, {"gradient": exact}, entries=False)
    logs = trainer.state.log_history
    assert_sum_no_worse(logs[-1]["train_loss"], loss16, loss64)
    assert_sum_no_worse(logs[0]["nll"], nll16, nll64)
