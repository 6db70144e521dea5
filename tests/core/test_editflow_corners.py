"""Edit Flows where little is to be learnt, or something is wrong: no edits, no answer, one sample, NaN, long texts."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from tests.core.edit_runs import BOS, check_step, model_of, plain_loss, prompted, trainer_of
from tests.core.runs import Gradients, losses

pytestmark = pytest.mark.usefixtures("one_thread")

ANSWERLESS = [dict(input_ids=[BOS, 20, 21, 22][:n], prompt_len=n) for n in (1, 2, 3, 4)]


def step_of(folder, samples, **options):
    """The trainer after one step over all samples, and the gradients by name."""
    model, watch = model_of(), Gradients()
    options = dict(per_device_train_batch_size=len(samples), max_steps=1, learning_rate=0.0) | options
    trainer = trainer_of(folder, model, samples, callbacks=[watch], **options)
    trainer.train()
    (step,) = watch.seen
    sizes = [weight.numel() for weight in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    return trainer, step, dict(zip(names, step.split(sizes), strict=True))


@pytest.mark.parametrize("samples", [prompted(5), ANSWERLESS], ids=["answers", "no answers"])
def test_pairs_that_need_no_edit(samples, tmp_path):
    """The loss is the sum of all rates alone, so that the heads of tokens learn nothing."""
    trainer, step, gradients = step_of(tmp_path, samples, x0_sampler=lambda answer: answer)
    check_step(step, trainer, samples)
    assert losses(trainer)[0] > 0 and step.isfinite().all()
    for name, gradient in gradients.items():
        assert bool(gradient.any()) != name.startswith(("sub_logits", "ins_logits")), name


def test_answers_that_are_empty(tmp_path):
    """What they begin from is deleted: x_0 is longer than x_1, and no token has to be predicted."""
    trainer, step, gradients = step_of(tmp_path, ANSWERLESS)
    check_step(step, trainer, ANSWERLESS)
    batch = trainer._make_collator()(ANSWERLESS)["corruption"]
    assert len(batch["del_rows"]) > 0 and len(batch["rows"]) == 0
    assert bool(gradients["rate_heads.weight"].any()) and not gradients["ins_logits.weight"].any()


def test_what_is_longer_than_the_sample(tmp_path):
    samples = prompted(6)
    trainer, step, _ = step_of(tmp_path, samples, x0_sampler="masks[length:40]")
    check_step(step, trainer, samples)
    assert int(trainer._make_collator()(samples)["corruption"]["lengths"].max()) > 20


def test_one_sample(tmp_path):
    for sample in (prompted(2)[1], dict(input_ids=[])):  # of the second BOS is all there is
        trainer, step, _ = step_of(tmp_path, [sample])
        check_step(step, trainer, [sample])
        expected = float(plain_loss(model_of(), trainer, [sample]).detach())
        assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", ["rate_heads.weight", "ins_logits.weight", "backbone.model.final_norm.weight"])
def test_a_loss_that_is_nan_is_logged_as_it_is(weight, tmp_path):
    """No clamp and no missing edit hides it."""
    model = model_of()
    torch.nn.init.constant_(model.get_parameter(weight), math.nan)
    trainer = trainer_of(tmp_path, model, prompted(8), max_steps=1, per_device_train_batch_size=8)
    trainer.train()
    assert math.isnan(losses(trainer)[0])


def test_texts_longer_than_the_model_was_made_for(tmp_path, caplog):
    """All backbones have rotary positions, which go on: one warning; whether x_0 is too long or x_1."""
    for sampler, length in (("masks[length:300]", 5), ("masks[length:5]", 300)):
        model, samples = model_of(), [dict(input_ids=[n] * length) for n in range(20, 36)]
        assert model.config.max_position_embeddings < 300
        caplog.clear()
        with caplog.at_level(logging.WARNING, "dllm"):
            options = dict(x0_sampler=sampler, max_steps=4, per_device_train_batch_size=4)
            trainer_of(tmp_path, model, samples, **options).train()
        assert caplog.text.count("tokens are longer than the") == 1
