"""What a subclass written for dLLM 0.1 replaces is what trains: its steps of the loss, or its whole loss."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
import torch.nn.functional as F

from dllm.core.trainers import BD3LMTrainer, MDLMTrainer
from tests.core.reference import Objective
from tests.core.runs import Gradients, Whole, losses, model_of, samples_of, trainer_of

STEP = dict(max_steps=1, per_device_train_batch_size=3, gradient_accumulation_steps=2)
NORMS = ("token", "sequence", "batch")


def gradient(folder, kind=MDLMTrainer, norm="token", **options) -> tuple[torch.Tensor, float]:
    """Of one optimizer step of two forwards, and the loss that is logged."""
    callback, objective = Gradients(), Objective(norm=norm, right_shift=options.pop("right_shift", False))
    model = model_of(Whole) if issubclass(kind, BD3LMTrainer) else model_of()
    trainer = trainer_of(folder, model, samples_of(6), objective, kind, callbacks=[callback], **(STEP | options))
    trainer.train()
    return callback.seen[0], losses(trainer)[0]


def close(found, expected) -> None:
    """Both ways sum the same float32 terms in another order: 100 ulp of the largest number."""
    for one, other in zip(found, expected, strict=True):
        one, other = torch.as_tensor(one), torch.as_tensor(other)
        assert torch.allclose(one, other, rtol=0, atol=100 * 2**-23 * float(other.abs().max()))


class OwnWeights(MDLMTrainer):
    """0.1's signature: weights of the shape [B, L]."""

    def _compute_loss_weights(self, t, inputs, *args, **kwargs):
        return 3.0 * super()._compute_loss_weights(t, inputs, *args, **kwargs)


class OwnOutputs(MDLMTrainer):
    def _postprocess_outputs(self, outputs):
        outputs = super()._postprocess_outputs(outputs)
        outputs.logits = outputs.logits * 1.0
        return outputs


class OwnInputs(MDLMTrainer):
    """Learns nothing of the first three tokens."""

    def _preprocess_inputs(self, inputs):
        labels = inputs["labels"].clone()
        labels[:, :3] = -100
        return inputs | {"labels": labels}


class OwnInputsOfBlocks(BD3LMTrainer):
    def _postprocess_outputs(self, outputs):
        assert outputs.logits.dim() == 3
        return super()._postprocess_outputs(outputs)


@pytest.mark.covering(1)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("right_shift", [False, True])
def test_replaced_outputs_are_the_same_objective(norm, right_shift, tmp_path):
    options = dict(norm=norm, right_shift=right_shift)
    close(gradient(tmp_path / "a", OwnOutputs, **options), gradient(tmp_path / "b", **options))


@pytest.mark.parametrize("norm", NORMS)
def test_replaced_weights_are_used(norm, tmp_path):
    (own, loss), (plain, plain_loss) = gradient(tmp_path / "a", OwnWeights, norm), gradient(tmp_path / "b", norm=norm)
    close((own, loss), (3 * plain, 3 * plain_loss))


def test_replaced_inputs_are_what_is_corrupted_and_counted(tmp_path):
    """The same as samples with those labels: the masks and the normaliser of the whole step."""
    own = gradient(tmp_path / "a", OwnInputs)
    callback = Gradients()
    samples = [sample | {"labels": [-100] * 3 + sample["labels"][3:]} for sample in samples_of(6)]
    trainer = trainer_of(tmp_path / "b", model_of(), samples, callbacks=[callback], **STEP)
    trainer.train()
    close(own, (callback.seen[0], losses(trainer)[0]))


def test_replaced_steps_of_block_diffusion(tmp_path):
    options = dict(block_size=4)
    own = gradient(tmp_path / "a", OwnInputsOfBlocks, **options)
    close(own, gradient(tmp_path / "b", BD3LMTrainer, **options))


def test_what_a_step_is_given(tmp_path):
    """x_0 with its labels, the times, and what is masked of it."""
    seen = []

    class Watching(MDLMTrainer):
        def _compute_loss_weights(self, t, inputs, masked_mask):
            seen.append((t, dict(inputs), masked_mask))
            return torch.ones(len(t), 1)

    samples = samples_of(3)
    trainer = trainer_of(tmp_path, model_of(), samples, kind=Watching, max_steps=1, per_device_train_batch_size=3)
    trainer.train()
    (times, inputs, masked), *_ = seen
    batch = inputs["input_ids"].tolist(), inputs["attention_mask"]
    rows = {tuple(row[: int(real.sum())]) for row, real in zip(*batch, strict=True)}
    assert rows == {tuple(sample["input_ids"]) for sample in samples}
    assert bool(((inputs["labels"] != -100) >= masked).all()) and masked.any() and times.shape == (3,)


@pytest.mark.parametrize("wrong, rule", [(torch.ones(5), "shape"), (1.0, "must return a tensor, got float")])
def test_weights_that_cannot_be_used(wrong, rule, tmp_path):
    class Wrong(MDLMTrainer):
        def _compute_loss_weights(self, t, inputs, *args, **kwargs):
            return wrong

    trainer = trainer_of(tmp_path, model_of(), samples_of(3), kind=Wrong, max_steps=1)
    with pytest.raises((TypeError, ValueError), match=rule):
        trainer.train()


class OldLoss(MDLMTrainer):
    """The shape of 0.1's own loss: clean batches with labels, masks drawn by the loss, a mean of its own."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        inputs = self._preprocess_inputs(inputs)
        ids, labels = inputs["input_ids"], inputs["labels"]
        maskable = labels != -100
        t = torch.full((len(ids),), 0.5)
        masked = maskable & (torch.arange(ids.shape[1]) % 2 == 0)
        noised = torch.where(masked, self.mask_id, ids)
        outputs = self._postprocess_outputs(model(input_ids=noised, attention_mask=inputs.get("attention_mask", None)))
        weights = self._compute_loss_weights(t=t, inputs=inputs, masked_mask=masked)
        nll = F.cross_entropy(outputs.logits.transpose(1, 2), ids, reduction="none") * weights * masked
        self.meter.update(split="train" if model.training else "eval", value=nll.detach(), weight=maskable.float())
        assert self.time_epsilon == 1e-3 and self.loss_weight_type == "scheduler" and not self.right_shift_logits
        loss = nll.sum() / maskable.sum().clamp_min(1) if self.loss_norm_type == "token" else None
        return (loss, outputs) if return_outputs else loss


def test_a_loss_of_its_own_trains_and_is_measured(tmp_path):
    """On one batch of fixed masks the loss is known: that of the first forward, as plain PyTorch computes it."""
    samples, model = samples_of(4), model_of()
    options = dict(per_device_train_batch_size=4, per_device_eval_batch_size=4, max_steps=1, learning_rate=0.0)
    trainer = trainer_of(tmp_path, model, samples, kind=OldLoss, eval_dataset=samples, **options)
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    found = trainer.evaluate()
    assert entry["loss"] == pytest.approx(found["eval_loss"], rel=1e-5)
    assert entry["nll"] == pytest.approx(entry["loss"], rel=1e-5) == pytest.approx(found["eval_nll"], rel=1e-5)
    assert found["eval_ppl"] == pytest.approx(torch.tensor(found["eval_nll"]).exp().item(), rel=1e-5)


def test_a_loss_of_its_own_is_a_mean_over_the_forwards_of_a_step(tmp_path):
    """Two forwards of one batch of three are the mean of both: not their sum, whatever the model's forward takes."""
    samples = samples_of(3) * 2
    one = dict(max_steps=1, per_device_train_batch_size=3, accelerator_config={"use_seedable_sampler": False})

    def run(folder, samples, **options):
        callback = Gradients()
        trainer = trainer_of(folder, model_of(), samples, kind=OldLoss, callbacks=[callback], **(one | options))
        trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(samples)
        trainer.train()
        return callback.seen[0]

    close([run(tmp_path / "a", samples, gradient_accumulation_steps=2)], [run(tmp_path / "b", samples[:3])])


class Scaled(MDLMTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        assert "labels" in inputs
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        return (2 * loss, outputs) if return_outputs else 2 * loss


def test_a_loss_around_ours_keeps_the_normaliser_of_the_whole_step(tmp_path):
    (own, loss), (plain, plain_loss) = gradient(tmp_path / "a", Scaled), gradient(tmp_path / "b")
    close((own, loss), (2 * plain, 2 * plain_loss))
    trainer = trainer_of(tmp_path, model_of(), samples_of(4), kind=Scaled, eval_dataset=samples_of(4))
    other = trainer_of(tmp_path, model_of(), samples_of(4), eval_dataset=samples_of(4))
    found, expected = trainer.evaluate(), other.evaluate()
    assert found["eval_nll"] == pytest.approx(expected["eval_nll"], rel=1e-5)


def test_a_step_that_is_set_on_the_instance_counts_too(tmp_path):
    trainer = trainer_of(tmp_path, model_of(), samples_of(3), max_steps=1)
    trainer._compute_loss_weights = lambda t, inputs, masked_mask: torch.zeros_like(masked_mask, dtype=torch.float32)
    trainer.train()
    assert losses(trainer) == [0]


def test_what_is_replaced_is_said_once_and_eager(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "dllm"):
        trainer = trainer_of(tmp_path, model_of(), samples_of(3), kind=OwnWeights)
    assert caplog.text.count("OwnWeights has its own _compute_loss_weights") == 1
    assert "own steps of the loss, got another _compute_loss_weights" in caplog.text and trainer.graphs is None
    caplog.clear()
    trainer_of(tmp_path, model_of(), samples_of(3))
    assert "has its own" not in caplog.text


def test_arguments_by_position_and_as_attributes(tmp_path):
    trainer = trainer_of(tmp_path, model_of(), samples_of(3), Objective(norm="batch", weight="uniform", low=0.01))
    config, scheduler, model = trainer.args, trainer.scheduler, trainer.model
    by_position = MDLMTrainer(config, scheduler, model, train_dataset=samples_of(3))
    assert by_position.model is model and by_position.scheduler is scheduler
    assert (trainer.time_epsilon, trainer.loss_weight_type, trainer.loss_norm_type) == (0.01, "uniform", "batch")
    with pytest.raises(AttributeError):
        trainer.time_epsilon = 0.5  # would do nothing: what draws the masks has been made
    blocks = trainer_of(tmp_path, model_of(Whole), samples_of(3), kind=BD3LMTrainer, block_size=4)
    assert BD3LMTrainer(blocks.args, None, blocks.model, train_dataset=samples_of(3)).block_size == 4


def test_a_stream_that_begins_again_is_masked_anew(tmp_path):
    """Within one epoch, since it never ends: the same text loses other tokens when it comes round."""
    sample = {"input_ids": list(range(10, 60)), "labels": list(range(10, 60))}

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True:
                yield dict(sample)

    def four_batches() -> list[torch.Tensor]:
        trainer = trainer_of(tmp_path, model_of(), Endless(), max_steps=8, per_device_train_batch_size=1)
        return [batch["input_ids"] for batch in itertools.islice(trainer.get_train_dataloader(), 4)]

    batches = four_batches()
    assert len({tuple(batch.flatten().tolist()) for batch in batches}) == 4
    assert all(map(torch.equal, batches, four_batches()))
