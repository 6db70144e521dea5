"""Tiny runs of DiffusionGemmaTrainer: the model, data and arguments that its tests share, and the check of a step."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from dllm.core.trainers import DiffusionGemmaTrainer, DiffusionGemmaTrainerConfig
from dllm_kernels.testing import assert_no_worse, assert_sum_no_worse
from tests.core.canvas_reference import Rules, drawn, exact, plain_loss
from tests.core.runs import SEED, Gradients, config_of, pad_right
from tests.diffusion_gemma_models import VOCAB, tiny_diffusion_gemma

END, PLAIN = 1, Rules()
GOOD = {"input_ids": [5, 6, 7, END], "labels": [-100, -100, 7, END]}
ONE_STEP = dict(per_device_train_batch_size=3, gradient_accumulation_steps=2, num_train_epochs=1)


def samples_of(count: int, seed: int = 1) -> list[dict[str, list[int]]]:
    """Prompts and answers of several canvases, beyond the window of sliding layers too; every third answer was cut,
    and every fourth sample has two answers."""
    draw, samples = random.Random(seed), []
    for number in range(count):
        prompt, answer = ([draw.randrange(4, VOCAB - 8) for _ in range(draw.randint(*r))] for r in ((1, 20), (2, 30)))
        answer += [END] * (number % 3 != 2)
        tokens, labels = prompt + answer, [-100] * len(prompt) + answer
        if number % 4 == 3:
            tokens, labels = [*tokens, 7, 8, 9, END], [*labels, -100, 8, 9, END]
        samples.append({"input_ids": tokens, "labels": labels})
    return samples


def model_of(**text):
    """A model in which the norms' weights, the layers' scalars and the MLP of the signal are drawn, too."""
    model = tiny_diffusion_gemma(sureness=6.0, **text)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1 and "router" not in name:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
            if "self_conditioning" in name and weight.dim() == 2:
                weight.mul_(8)
    model.generation_config.eos_token_id = END
    return model


def trainer_of(folder, model, samples, rules=PLAIN, **options):
    callbacks, evaluated = options.pop("callbacks", None), options.pop("eval_dataset", None)
    own = dict(
        loss_norm_type=rules.norm,
        loss_weight_type="reweighted" if rules.reweighted else "uniform",
        loss_positions="corrupted" if rules.corrupted_only else "all",
        encoder_loss_weight=rules.encoder,
        self_conditioning=rules.twice,
        time_epsilon=rules.low,
        time_max=rules.high,
    )
    config = config_of(folder, DiffusionGemmaTrainerConfig, **own | options)
    return DiffusionGemmaTrainer(
        config,
        model=model,
        train_dataset=samples,
        eval_dataset=evaluated,
        data_collator=pad_right,
        callbacks=callbacks,
    )


def examples_of(samples, rules, epoch=0):
    return [drawn(sample["input_ids"], sample["labels"], SEED, epoch, rules) for sample in samples]


def gradients_of(model, samples, rules, trained):
    """The loss of one optimizer step, and its gradients of the parameters that are trained."""
    found = plain_loss(model, examples_of(samples, rules), rules)
    found.loss.backward()
    return found, torch.cat([p.grad.flatten() for name, p in model.named_parameters() if name in trained])


class NamedGradients(Gradients):
    """Notes besides which parameters had a gradient."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        super().on_pre_optimizer_step(args, state, control, model)
        self.names = {name for name, p in model.named_parameters() if p.grad is not None}


def check_one_step(folder, rules, model=None, **options):
    model, samples, watch = model if model is not None else model_of(), samples_of(6), NamedGradients()
    before = copy.deepcopy(model)
    trainer = trainer_of(folder, model, samples, rules, callbacks=[watch], **ONE_STEP, **options)
    trainer.train()
    check(trainer, watch, before, samples, rules)


def check(trainer, watch, before, samples, rules):
    """What the only step of a run logged, and its gradients, are no farther from float64 than plain float32 is."""
    assert watch.names == {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    inner = getattr(before, "get_base_model", lambda: before)()
    trained = {name.removeprefix("base_model.model.") for name in watch.names}
    (found, gradient), (plain, rounded) = (
        gradients_of(model, samples, rules, trained) for model in (exact(inner), inner)
    )
    (step,), logs = watch.seen, trainer.state.log_history[0]
    assert_no_worse({"gradient": step}, {"gradient": rounded}, {"gradient": gradient}, entries=False)
    assert logs["loss"] == pytest.approx(float(found.loss.detach()), rel=2e-5, abs=1e-4)  # the log has four decimals
    assert_sum_no_worse(logs["nll"], plain.nll, found.nll)
    assert ("encoder_nll" in logs) == bool(rules.encoder)
    if rules.encoder:
        assert_sum_no_worse(logs["encoder_nll"], plain.next_nll, found.next_nll)
