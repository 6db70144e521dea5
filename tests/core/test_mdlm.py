"""MDLMTrainer against the objective in plain PyTorch, one sample at a time."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from transformers import BertTokenizerFast, TrainerCallback

from dllm.configs import TrainingArguments
from dllm.core.trainers import MDLMConfig, MDLMTrainer
from dllm_kernels.testing import assert_no_worse, assert_sum_no_worse
from tests.core.reference import Objective, corrupted, gradients, plain_loss
from tests.core.runs import SEED, Gradients, Loose, Strict, config_of, model_of, pad_right, samples_of, trainer_of
from tests.fast.test_masked_loss import SYNC_FREE, NoHostSync
from tests.models import MASK_ID

pytestmark = pytest.mark.usefixtures("one_thread")


def truth(model, samples, objective, dtype, epoch=0):
    """Loss and NLL, by sample, and gradients of one step over `samples`."""
    model = copy.deepcopy(model).to(dtype).eval()
    noised = [corrupted(s["input_ids"], s["labels"], SEED, epoch, MASK_ID, objective) for s in samples]
    plain = plain_loss(model, noised, objective)
    plain.loss.sum().backward()
    return plain.loss.detach().double(), plain.nll.double(), gradients(model)


def check(trainer, seen, model, samples, objective):
    """Loss, NLL and gradients of a run of one step: error at most twice that of plain PyTorch in float32."""
    loss64, nll64, exact = truth(model, samples, objective, torch.float64)
    loss32, nll32, plain = truth(model, samples, objective, torch.float32)
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert_sum_no_worse(trainer.state.log_history[-1]["train_loss"], loss32, loss64)  # transformers 4 rounds the other
    assert_sum_no_worse(entry["nll"], nll32, nll64)
    assert entry["ppl"] == pytest.approx(math.exp(entry["nll"]), rel=1e-12)
    (step,) = seen
    assert_no_worse({"gradient": step}, {"gradient": plain}, {"gradient": exact}, entries=False)


# every normalisation with every way to cut eight samples into forwards, one of them with a rest; both kinds of forward
@pytest.mark.covering(1)
@pytest.mark.parametrize("kind", [Strict, Loose])
@pytest.mark.parametrize("size, accumulation", [(8, 1), (4, 2), (1, 8), (3, 3)])
@pytest.mark.parametrize("norm", ["token", "sequence", "batch"])
def test_accumulated_forwards_are_one_batch(norm, size, accumulation, kind, tmp_path):
    model, samples, objective = model_of(kind), samples_of(8), Objective(norm=norm)
    before, watch = copy.deepcopy(model), Gradients()
    trainer = trainer_of(
        tmp_path,
        model,
        samples,
        objective,
        callbacks=[watch],
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,
    )
    trainer.train()
    check(trainer, watch.seen, before, samples, objective)


@pytest.mark.parametrize(
    "objective",
    [
        Objective(weight="uniform"),
        Objective(alpha="cosine"),
        Objective(alpha="cosine", norm="sequence", low=0.3, high=0.8),
        Objective(right_shift=True),
        Objective(right_shift=True, norm="batch", weight="uniform"),
        Objective(low=0.99),  # nearly everything masked
        Objective(high=0.05, norm="sequence"),  # hardly anything; weights above 20
    ],
)
def test_objectives(objective, tmp_path):
    model, samples, watch = model_of(), samples_of(8), Gradients()
    before = copy.deepcopy(model)
    trainer = trainer_of(
        tmp_path, model, samples, objective, callbacks=[watch], per_device_train_batch_size=8, num_train_epochs=1
    )
    trainer.train()
    check(trainer, watch.seen, before, samples, objective)


def test_epochs_draw_new_masks(tmp_path):
    model, samples, watch = model_of(), samples_of(6), Gradients()
    before = copy.deepcopy(model)
    trainer = trainer_of(
        tmp_path,
        model,
        samples,
        callbacks=[watch],
        per_device_train_batch_size=6,
        num_train_epochs=3,
        learning_rate=0.0,
    )
    trainer.train()
    for epoch, step in enumerate(watch.seen):
        *_, exact = truth(before, samples, Objective(), torch.float64, epoch)
        *_, plain = truth(before, samples, Objective(), torch.float32, epoch)
        assert_no_worse({"gradient": step}, {"gradient": plain}, {"gradient": exact}, entries=False)


@pytest.mark.parametrize("norm", ["token", "sequence", "batch"])
def test_evaluation_is_of_the_whole_data_whatever_the_batches(norm, tmp_path):
    """Batches of 3 and a rest of 1; no mean of means. The same masks in every evaluation."""
    model, samples, objective = model_of(), samples_of(7, seed=5), Objective(norm=norm)
    loss64, nll64, _ = truth(model, samples, objective, torch.float64)
    loss32, nll32, _ = truth(model, samples, objective, torch.float32)
    trainer = trainer_of(tmp_path, model, samples_of(4), objective, eval_dataset=samples, per_device_eval_batch_size=3)
    for _ in range(2):
        metrics = trainer.evaluate()
        assert_sum_no_worse(metrics["eval_loss"], loss32, loss64)
        assert_sum_no_worse(metrics["eval_nll"], nll32, nll64)
        assert metrics["eval_ppl"] == pytest.approx(math.exp(metrics["eval_nll"]), rel=1e-12)
    assert trainer.predict(samples).metrics["test_nll"] == metrics["eval_nll"]


def test_loss_of_a_batch_by_hand(tmp_path):
    """compute_loss without the count of a step normalises by the batch alone."""
    model, samples = model_of().eval(), samples_of(5)
    trainer = trainer_of(tmp_path, model, samples, per_device_train_batch_size=5)
    (batch,) = trainer.get_train_dataloader()
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    loss64, nll64, _ = truth(model, samples, Objective(), torch.float64)
    loss32, _, _ = truth(model, samples, Objective(), torch.float32)
    assert_sum_no_worse(float(loss.detach()), loss32, loss64)
    assert sorted((outputs["nll"].double() / outputs["nll"].sum()).tolist()) == pytest.approx(
        sorted((nll64 / nll64.sum()).tolist()), rel=1e-5
    )


@pytest.mark.parametrize("norm", ["token", "sequence", "batch"])
def test_nothing_to_mask_trains_on_nothing(norm, tmp_path, caplog):
    nothing = [{"input_ids": [5, 6, 7], "labels": [-100] * 3}] * 4
    model, watch = model_of(), Gradients()
    trainer = trainer_of(tmp_path, model, nothing, Objective(norm=norm), callbacks=[watch], num_train_epochs=2)
    with caplog.at_level(logging.WARNING, "dllm"):
        trainer.train()
    assert caplog.text.count("no token that may be masked") == 1
    assert trainer.state.log_history[-1]["train_loss"] == 0
    assert len(watch.seen) == 2 and not any(step.any() for step in watch.seen)


def test_bad_samples_stop_the_run(tmp_path):
    wrong = [*samples_of(3), {"input_ids": [5, 6], "labels": [5, 7]}]
    with pytest.raises(ValueError, match="label 7 for token 6"):
        trainer_of(tmp_path, model_of(), wrong).train()


@pytest.mark.curve
def test_logs_and_curve(tmp_path):
    samples = samples_of(8)
    trainer = trainer_of(
        tmp_path,
        model_of(),
        samples,
        per_device_train_batch_size=4,
        num_train_epochs=2,
        eval_dataset=samples,
        eval_strategy="steps",
        eval_steps=2,
        logging_steps=2,
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in entries] == [2, 4]
    for entry in entries:
        assert 0 < entry["masked_tokens_per_second"] < entry["tokens_per_second"]
        assert 0 < entry["mfu"] < 1 and entry["peak_memory_gib"] > 0.01
        # both entries cover an epoch of the same samples: the rates' ratio is a ratio of counts
        epoch = entry["step"] // 2 - 1
        drawn = [corrupted(s["input_ids"], s["labels"], SEED, epoch, MASK_ID, Objective()) for s in samples]
        masked, tokens = sum(len(c.masked) for c in drawn), sum(len(c.tokens) for c in drawn)
        assert entry["masked_tokens_per_second"] / entry["tokens_per_second"] == pytest.approx(masked / tokens)
    assert [entry["step"] for entry in trainer.state.log_history if "eval_nll" in entry] == [2, 4]
    assert (tmp_path / "training_curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.curve
def test_an_interrupted_run_leaves_its_curve(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise KeyboardInterrupt

    trainer = trainer_of(tmp_path, model_of(), samples_of(8), callbacks=[Stop()], per_device_train_batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert (tmp_path / "training_curve.png").exists()


def test_ema(tmp_path):
    """Evaluation and the saved model are the average; the model that is trained is left alone."""
    model, averages = model_of(), []
    start = {name: p.detach().double().clone() for name, p in model.named_parameters()}

    class Average(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            n = state.global_step
            decay = min(0.5, (1 + n) / (10 + n))
            for name, p in model.named_parameters():
                start[name] = decay * start[name] + (1 - decay) * p.detach().double()
            averages.append(decay)

    samples = samples_of(12)
    trainer = trainer_of(
        tmp_path,
        model,
        samples,
        callbacks=[Average()],
        num_train_epochs=4,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        ema_decay=0.5,
        eval_dataset=samples,
    )
    trainer.train()
    assert averages[0] == 2 / 11 and averages[-1] == 0.5
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    nll = trainer.evaluate()["eval_nll"]
    trainer.save_model(str(tmp_path / "final"))
    saved = type(model).from_pretrained(tmp_path / "final")
    for name, p in saved.named_parameters():
        # twelve rounded updates of numbers of this size
        assert torch.allclose(p.double(), start[name], rtol=0, atol=12 * 2**-23 * float(start[name].abs().max()))
        assert not torch.equal(p, trained[name]) or not trained[name].any()
    assert all(torch.equal(p, trained[name]) for name, p in model.named_parameters())
    assert trainer_of(tmp_path, saved, samples, eval_dataset=samples).evaluate()["eval_nll"] == nll
    assert trainer_of(tmp_path, model, samples, eval_dataset=samples).evaluate()["eval_nll"] != nll


def test_tokenizer_by_either_name_pads_and_names_the_mask(tmp_path):
    vocabulary = ["[UNK]", "[PAD]", "[SEP]", "[MASK]", "[CLS]", *(f"word{i}" for i in range(126))]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt"), vocab=str(tmp_path / "vocab.txt"))
    model, samples = model_of(), samples_of(4)
    model.config.mask_token_id = None
    for name in ("tokenizer", "processing_class"):
        trainer = MDLMTrainer(config_of(tmp_path), model=model, train_dataset=samples, **{name: tokenizer})
        assert trainer.processing_class is tokenizer and trainer.mask_id == tokenizer.mask_token_id
        (batch,) = trainer.get_train_dataloader()
        assert batch["corruption"]["lengths"].sum() == sum(len(s["input_ids"]) for s in samples)
        assert (batch["input_ids"] == tokenizer.mask_token_id).sum() == len(batch["corruption"]["rows"])
    with pytest.raises(TypeError, match="two names"):
        MDLMTrainer(config_of(tmp_path), model=model, tokenizer=tokenizer, processing_class=tokenizer)


def test_a_stream_of_samples(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from samples_of(6)

    trainer = trainer_of(tmp_path, model_of(), Stream(), max_steps=5, per_device_train_batch_size=4)
    epochs, collate = [], trainer._collators["train"]
    base = collate.base
    collate.base = lambda samples: epochs.append(collate.epoch) or base(samples)
    trainer.train()
    assert trainer.state.global_step == 5 and epochs[:5] == [0, 0, 1, 1, 2]


def test_a_step_does_not_wait_for_the_device(tmp_path):
    """From the batch on: the count of a step, the loss, the meters, the backward."""
    model = model_of(**SYNC_FREE)
    trainer = trainer_of(tmp_path, model, samples_of(6), Objective(norm="sequence"))
    whole = [{"input_ids": s["input_ids"][:3], "labels": s["input_ids"][:3]} for s in samples_of(4)]
    batch = trainer._collators["train"](whole)  # of one length: without an attention mask, at which bodies look
    trainer.compute_loss(model.train(), batch)
    with NoHostSync():
        (again,), normalizer = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
        trainer.compute_loss(model, again, num_items_in_batch=normalizer).backward()


def test_an_embedding_spread_by_zero3(tmp_path):
    """Such a weight is empty on every rank between forwards, and says what it is a part of."""
    model = model_of(tie_word_embeddings=False)
    weight = model.get_input_embeddings().weight
    weight.ds_shape, weight.data = weight.shape, torch.empty(0)
    trainer = trainer_of(tmp_path, model, samples_of(4))
    assert trainer.mask_id == MASK_ID
    (batch,) = trainer.get_train_dataloader()
    assert len(batch["corruption"]["rows"])


def test_names_of_labels_reach_the_collator(tmp_path):
    """`label_names` are columns to keep: here the seeds that take the place of drawn ones."""
    samples = [sample | {"seeds": number, "more": 1} for number, sample in enumerate(samples_of(3))]
    config, seen = config_of(tmp_path, label_names=["seeds"], per_device_train_batch_size=3), []

    def collate(rows):
        seen.extend(set(row) for row in rows)
        return pad_right(rows) | {"seeds": torch.tensor([row["seeds"] for row in rows])}

    trainer = MDLMTrainer(config, model=model_of(), train_dataset=samples, data_collator=collate)
    list(trainer.get_train_dataloader())
    assert seen == [{"input_ids", "labels", "seeds"}] * 3


def test_what_the_trainer_refuses(tmp_path):
    config, model = config_of(tmp_path), model_of()
    with pytest.raises(TypeError, match="must be an MDLMConfig, got TrainingArguments"):
        MDLMTrainer(TrainingArguments(output_dir=str(tmp_path), report_to="none"), model=model)
    for name in ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics"):
        with pytest.raises(ValueError, match=name):
            MDLMTrainer(config, model=model, **{name: print})
    with pytest.raises(TypeError, match="sampler"):
        MDLMTrainer(config, model=model, sampler=None)
    model.config.mask_token_id = 131
    with pytest.raises(ValueError, match=r"mask token.*131 tokens, got 131"):
        MDLMTrainer(config, model=model)
    model.config.mask_token_id, model.name_or_path = None, ""
    with pytest.raises(ValueError, match="mask"):
        MDLMTrainer(config, model=model)
    config._n_gpu = 2
    with pytest.raises(ValueError, match="one GPU, got 2"):
        MDLMTrainer(config, model=model_of())


@pytest.mark.parametrize(
    "pattern, options",
    [
        (r"time_epsilon.*time_max.*0\.5 and 0\.5", dict(time_epsilon=0.5, time_max=0.5)),
        (r"time_epsilon.*-0\.1", dict(time_epsilon=-0.1)),
        (r"time_max.*1\.1", dict(time_max=1.1)),
        (r"time_epsilon.*nan", dict(time_epsilon=float("nan"))),
        (r"loss_weight_type.*scheduler, uniform.*'1/t'", dict(loss_weight_type="1/t")),
        (r"loss_norm_type.*token, sequence, batch.*'mean'", dict(loss_norm_type="mean")),
        (r"ema_decay.*1\.0", dict(ema_decay=1.0)),
        (r"load_best_model_at_end.*ema_decay", dict(ema_decay=0.9, load_best_model_at_end=True)),
        (r"label_smoothing_factor.*0\.1", dict(label_smoothing_factor=0.1)),
        (r"dispatch_batches", dict(accelerator_config={"dispatch_batches": True})),
    ],
)
def test_what_the_config_refuses(pattern, options, tmp_path):
    with pytest.raises(ValueError, match=pattern):
        config_of(tmp_path, **options)


def test_defaults():
    config = MDLMConfig(output_dir="out", report_to="none")
    expected = dict(
        time_epsilon=1e-3,
        time_max=1.0,
        loss_weight_type="scheduler",
        loss_norm_type="token",
        right_shift_logits=None,
        antithetic_time=False,
        ema_decay=None,
        save_only_model=True,
    )
    assert {name: getattr(config, name) for name in expected} == expected


def test_a_loss_that_is_nan_is_logged_as_it_is(tmp_path):
    model = model_of()
    torch.nn.init.constant_(model.get_input_embeddings().weight, math.nan)
    trainer = trainer_of(tmp_path, model, samples_of(4))
    trainer.train()
    assert math.isnan(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))
