"""Runs of the trainer with graphs against eager ones, a stand-in capturing where there is no GPU."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from torch import nn
from transformers import BertTokenizerFast, HfArgumentParser, TrainerCallback

from dllm.core.trainers import MDLMConfig, MDLMTrainer
from dllm.core.trainers.base import cuda_graphs
from dllm.core.trainers.padding import PadToGrid, padding_collator
from tests.core.runs import Gradients, config_of, losses, model_of, samples_of, trainer_of
from tests.graph_stand_in import install

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "obstacles", lambda *a: iter(()))
    return install(monkeypatch)


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


# batches of 2 samples of 3 to 12 tokens: many shapes; a last step of fewer forwards in each epoch
RUN = dict(
    per_device_train_batch_size=2,
    num_train_epochs=3,
    learning_rate=1e-2,
    max_grad_norm=0.5,
    ema_decay=0.9,
    eval_strategy="steps",
    eval_steps=3,
    logging_steps=1,
)


def run(folder, *callbacks, resume=None, **options):
    model, watch = model_of(), Gradients()
    model.unused = nn.Parameter(torch.ones(2))
    model.train()
    trainer = trainer_of(
        folder,
        model,
        samples_of(14, longest=5),
        callbacks=[watch, *callbacks],
        eval_dataset=samples_of(3, seed=1),
        **(RUN | options),
    )
    try:
        trainer.train(resume_from_checkpoint=resume)
    except KeyboardInterrupt:
        pass
    return trainer, watch.seen


def compare(found, expected):
    (ours, our_steps), (theirs, their_steps) = found, expected
    assert losses(ours) == losses(theirs)
    told = ("nll", "grad_norm", "eval_nll", "eval_loss", "masked_tokens")
    for a, b in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        assert {name: a.get(name) for name in told} == {name: b.get(name) for name in told}
    assert all(torch.equal(a, b) for a, b in zip(our_steps, their_steps, strict=True))
    for name, value in theirs.model.state_dict().items():
        assert torch.equal(value, ours.model.state_dict()[name]), name
    for name, value in theirs.averaged.average.items():
        assert torch.equal(value, ours.averaged.average[name]), name
    assert ours.averaged.updates == theirs.averaged.updates


@pytest.mark.covering(1)
@pytest.mark.parametrize("cuda_graph", [None, True])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_run_equals_the_eager_one(cuda_graph, accumulation, stand_in, tmp_path):
    """Losses, meters, clipped gradients, weights, their averages; evaluations in between."""
    options = dict(gradient_accumulation_steps=accumulation)
    eager = run(tmp_path / "eager", cuda_graph=False, **options)
    assert eager[0].graphs is None and stand_in.captures == 0
    graphed_run = run(tmp_path / "graphed", cuda_graph=cuda_graph, **options)
    compare(graphed_run, eager)
    assert stand_in.replays == 21 if cuda_graph else stand_in.replays > 3
    assert graphed_run[0].model.unused.grad is None
    assert graphed_run[0].graphs.why_eager is None and len(graphed_run[0].graphs) == 0  # memory given back


def test_a_resumed_run(stand_in, tmp_path):
    options = dict(gradient_accumulation_steps=2, save_strategy="steps", save_steps=1, save_only_model=False)
    whole, steps = run(tmp_path / "whole", cuda_graph=False, **options)
    run(tmp_path / "cut", KillAt(5), cuda_graph=True, **options)
    resumed, rest = run(tmp_path / "cut", resume=True, cuda_graph=True, **options)
    assert len(rest) == len(steps) - 5 and stand_in.replays > 0
    compare((resumed, steps[:5] + rest), (whole, steps))


def test_a_loss_by_hand_stays_differentiable(stand_in, tmp_path):
    """Only the training step replays."""
    trainer = trainer_of(tmp_path, model_of().train(), samples_of(4), cuda_graph=True)
    (batch,) = trainer.get_train_dataloader()
    trainer.compute_loss(trainer.model, batch).backward()
    assert stand_in.captures == 0 and trainer.model.get_output_embeddings().bias.grad.any()


def test_a_step_that_cannot_be_captured(stand_in, tmp_path, caplog):
    """Dropout on a CPU draws on the host: an eager run with a reason, or an error."""
    runs = {}
    for cuda_graph in (False, None):
        torch.manual_seed(0)
        trainer = trainer_of(
            tmp_path, model_of(dropout=0.1), samples_of(12, longest=4), cuda_graph=cuda_graph, num_train_epochs=3
        )
        trainer.train()
        runs[cuda_graph] = losses(trainer)
    assert runs[None] == runs[False]
    assert caplog.text.count("eager training steps, because") == 1 and "random numbers on the host" in caplog.text
    trainer = trainer_of(tmp_path, model_of(dropout=0.1), samples_of(4), cuda_graph=True)
    with pytest.raises(RuntimeError, match=r"cuda_graph=True, but .*random numbers on the host"):
        trainer.train()


def test_without_a_gpu(tmp_path, caplog):
    with pytest.raises(ValueError, match="cuda_graph=True needs a CUDA device, got cpu"):
        trainer_of(tmp_path, model_of(), samples_of(4), cuda_graph=True)
    with caplog.at_level(logging.INFO, "dllm"):
        trainer = trainer_of(tmp_path, model_of(), samples_of(4))
    assert trainer.graphs is None and "needs a CUDA device, got cpu" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "dllm"):
        assert trainer_of(tmp_path, model_of(), samples_of(4), cuda_graph=False).graphs is None
    assert "CUDA" not in caplog.text


class OwnLoss(MDLMTrainer):
    def compute_loss(self, *args, **kwargs):
        return 2 * super().compute_loss(*args, **kwargs)


def described(**changed):
    """A run on one GPU, as `obstacles` looks at it."""
    args = dict(
        device=torch.device("cuda", 0),
        world_size=1,
        fp16=False,
        optim="adamw_torch",
        gradient_checkpointing=False,
        gradient_checkpointing_kwargs=None,
    )
    of_trainer = dict(is_model_parallel=False, kind=DistributedType.NO, owner=MDLMTrainer) | changed
    args |= {name: changed[name] for name in args if name in changed}
    return SimpleNamespace(
        args=SimpleNamespace(**args),
        is_model_parallel=of_trainer["is_model_parallel"],
        accelerator=SimpleNamespace(distributed_type=of_trainer["kind"]),
        compute_loss=of_trainer["owner"].compute_loss.__get__(object()),
    )


@pytest.mark.parametrize(
    "changed, need, got",
    [
        (dict(device=torch.device("cpu")), "a CUDA device", "cpu"),
        (dict(world_size=2, kind=DistributedType.MULTI_GPU), "one process", "2 with MULTI_GPU"),
        (dict(kind=DistributedType.FSDP), "without a wrapper", "1 with FSDP"),
        (dict(kind=DistributedType.DEEPSPEED), "without a wrapper", "1 with DEEPSPEED"),
        (dict(is_model_parallel=True), "one device", "several"),
        (dict(fp16=True), "bf16 or float32", "fp16"),
        (dict(optim="adalomo"), "apart from the backward", "adalomo"),
        (dict(owner=OwnLoss), "own compute_loss", "another"),
        (dict(gradient_checkpointing=True), "preserve_rng_state", "None"),
    ],
)
def test_what_stands_against_graphs(changed, need, got):
    ((what, instead),) = cuda_graphs.obstacles(described(**changed), MDLMTrainer.compute_loss)
    assert need in what and got in instead


def test_what_does_not():
    assert not list(cuda_graphs.obstacles(described(), MDLMTrainer.compute_loss))
    kept = dict(gradient_checkpointing=True, gradient_checkpointing_kwargs={"preserve_rng_state": False})
    assert not list(cuda_graphs.obstacles(described(**kept), MDLMTrainer.compute_loss))


def test_the_field(tmp_path):
    parser = HfArgumentParser(MDLMConfig)
    always = ["--output_dir", str(tmp_path), "--report_to", "none", "--use_cpu", "true", "--bf16", "false"]
    for words, value in (([], None), (["--cuda_graph", "true"], True), (["--cuda_graph", "false"], False)):
        assert parser.parse_args_into_dataclasses([*always, *words])[0].cuda_graph is value
    with pytest.raises(SystemExit):
        parser.parse_args_into_dataclasses([*always, "--cuda_graph", "maybe"])
    for wrong in (1, "auto"):
        with pytest.raises(TypeError, match=f"None, True or False, got {type(wrong).__name__}"):
            config_of(tmp_path, cuda_graph=wrong)


def test_batches_of_few_shapes(stand_in, tmp_path):
    """Of the trainer's own making: multiples of 64, as far as the model has positions. Others are left alone."""
    vocabulary = ["[UNK]", "[PAD]", "[SEP]", "[MASK]", "[CLS]", *(f"word{i}" for i in range(126))]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt"), vocab=str(tmp_path / "vocab.txt"))
    samples = [{"input_ids": list(range(5, 5 + n)), "labels": list(range(5, 5 + n))} for n in (3, 64, 65)]
    collate = padding_collator(tokenizer, few_shapes=True, positions=96)
    for chosen, width in ((samples[:1], 64), (samples[:2], 64), (samples, 65)):
        batch = collate(chosen)
        assert batch["input_ids"].shape == batch["labels"].shape == (len(chosen), width)
        assert (batch["labels"][0, 3:] == -100).all() and batch["attention_mask"][0].sum() == 3
    assert padding_collator(tokenizer, few_shapes=True)(samples)["input_ids"].shape == (3, 128)
    for cuda_graph, kind in ((None, PadToGrid), (False, type(padding_collator(tokenizer)))):
        trainer = MDLMTrainer(
            config_of(tmp_path, cuda_graph=cuda_graph), model=model_of(), tokenizer=tokenizer, train_dataset=samples
        )
        assert type(trainer.data_collator) is type(trainer._collators["train"].base) is kind
    assert trainer_of(tmp_path, model_of(), samples).data_collator.__name__ == "pad_right"
