"""Training steps as real CUDA graphs. Attention is the model's own matrix products and softmax, whose backward adds up
in one order, and the eager step gets the same padded rows: so equal means bit for bit, dropout included."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from dllm.core.trainers.base import cuda_graphs
from dllm.fast.training.graphs import WORTH_CAPTURING, Batch, TrainingGraphs, forward_and_backward
from dllm.fast.training.loss import MaskedLoss, masked_loss
from tests.core.runs import losses, model_of, samples_of, trainer_of
from tests.models import tiny

pytestmark = pytest.mark.gpu


def model_with(dropout=0.1, family="bert"):
    rates = dict(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return tiny(family, attn_implementation="eager", **rates).train().cuda()


def batch_of(shape=(3, 20), rows=17, seed=0):
    draw = torch.Generator().manual_seed(seed)
    tokens, chosen = torch.randint(5, 97, shape, generator=draw), torch.randperm(shape[0] * shape[1], generator=draw)
    targets, weight = torch.randint(5, 97, (rows,), generator=draw), torch.rand(rows, generator=draw)
    return Batch({"input_ids": tokens.cuda()}, chosen[:rows].cuda(), targets.cuda(), weight.cuda())


def padded(model, inputs, **rows):
    """masked_loss on as many rows as a captured step has."""
    own = Batch(dict(inputs), **rows).copy()
    loss, nll = masked_loss(model, own.inputs, rows=own.rows, targets=own.targets, row_weight=own.row_weight)
    return MaskedLoss(loss, nll[: len(rows["rows"])])


def by(captured):
    def step(model, b):
        return captured.step(model, b.inputs, rows=b.rows, targets=b.targets, row_weight=b.row_weight)

    return step


def train(model, step, batches, accumulation=2):
    torch.manual_seed(7)
    optimizer, found = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for number, batch in enumerate(batches, start=1):
        found.append(step(model, batch).loss)
        if number % accumulation == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    return torch.stack(found).tolist()


def check_equal(model, captured, batches, eager=forward_and_backward):
    other = copy.deepcopy(model)
    expected = train(other, lambda m, b: eager(m, b.copy()), batches)
    sampled = torch.cuda.get_rng_state()
    assert train(model, by(captured), batches) == expected
    assert torch.equal(torch.cuda.get_rng_state(), sampled)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("cuda_graph", [None, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_twenty_steps(cuda_graph, dropout):
    """Two lengths, changing numbers of rows; under None the first of each shape are eager, on unpadded rows."""
    batches = [batch_of((4, 20 + 10 * (seed % 2)), 64 if cuda_graph is None else 5 + seed, seed) for seed in range(20)]
    captured = TrainingGraphs(cuda_graph)
    check_equal(model_with(dropout), captured, batches)
    assert len(captured) == 2 and captured.why_eager is None


def test_a_replay_never_waits_for_the_host():
    model, captured = model_with(), TrainingGraphs(True)
    by(captured)(model, batch_of())
    batches = [batch_of(seed=seed) for seed in range(4)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = [by(captured)(model, batch) for batch in batches]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(captured) == 1 and all(float(result.loss) > 0 for result in results)


def test_autocast_around_the_step():
    """Casts of weights made before are not the graph's, and weights that change are cast anew."""

    def under_autocast(step):
        def cast(model, batch):
            with torch.autocast("cuda", torch.bfloat16):
                model(**batch_of().inputs)  # leaves casts in the cache
                return step(model, batch)

        return cast

    model, other, captured = model_with(0.0), model_with(0.0), TrainingGraphs(True)
    batches = [batch_of(seed=seed) for seed in range(6)]
    expected = train(other, under_autocast(lambda m, b: forward_and_backward(m, b.copy())), batches)
    assert train(model, under_autocast(by(captured)), batches) == expected and len(captured) == 1


class Waits(nn.Module):
    """In the middle of a model: `how` waits for the device."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        self.how(x)
        return x


@pytest.mark.parametrize("how", [torch.Tensor.tolist, lambda x: torch.cuda.current_stream().synchronize()])
def test_what_cannot_be_captured(how, caplog):
    """torch sees the first coming and not the second, which breaks the capture off. Dropout goes on in either case."""
    model, captured = model_with(), TrainingGraphs()
    model.cls.predictions.transform = nn.Sequential(model.cls.predictions.transform, Waits(how))
    batches = [batch_of(rows=64 - 4, seed=seed) for seed in range(WORTH_CAPTURING + 4)]
    with caplog.at_level(logging.WARNING, "dllm.fast"):
        other = copy.deepcopy(model)
        expected = train(other, forward_and_backward, batches)
        assert train(model, by(captured), batches) == expected
    assert caplog.text.count("eager training steps, because the step cannot be captured") == 1
    stream = torch.cuda.current_stream()
    with pytest.raises(RuntimeError, match="cuda_graph=True, but the training step cannot be captured"):
        by(TrainingGraphs(True))(model, batches[0])
    assert torch.cuda.current_stream() == stream
    check_equal(model_with(), TrainingGraphs(True), batches[:4])  # another one can be, afterwards


def test_gradient_checkpointing():
    """With the state of the generator saved no capture is possible; without it is, there being no dropout."""
    model = model_with(0.0)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(RuntimeError, match="cannot be captured"):
        by(TrainingGraphs(True))(model, batch_of())
    model = model_with(0.0)
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": False}
    )
    captured = TrainingGraphs(True)
    check_equal(model, captured, [batch_of(seed=seed) for seed in range(4)])
    assert len(captured) == 1


def trained(folder, **options):
    torch.manual_seed(0)
    model = model_of(dropout=0.1)
    model.set_attn_implementation("eager")
    long = [s["input_ids"][:8] for s in samples_of(60, longest=20) if len(s["input_ids"]) >= 8]
    whole = [{"input_ids": tokens, "labels": tokens} for tokens in long]  # nothing padded, no attention mask
    run = dict(per_device_train_batch_size=2, num_train_epochs=2, max_grad_norm=0.5, ema_decay=0.9, learning_rate=1e-3)
    trainer = trainer_of(folder, model, whole, use_cpu=False, **(run | options))
    trainer.train()
    return trainer


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_trainer(bf16, accumulation, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "masked_loss", padded)
    options = dict(bf16=bf16, gradient_accumulation_steps=accumulation)
    eager = trained(tmp_path / "eager", cuda_graph=False, **options)
    graphed = trained(tmp_path / "graphed", cuda_graph=True, **options)
    assert losses(graphed) == losses(eager)
    for name, value in graphed.model.state_dict().items():
        assert torch.equal(value, eager.model.state_dict()[name]), name


def test_the_trainer_falls_back(tmp_path, caplog):
    trainer = trained(tmp_path, gradient_checkpointing=True)
    assert trainer.graphs is None and trainer.state.log_history
    with pytest.raises(ValueError, match="cuda_graph=True needs gradient checkpointing with"):
        trained(tmp_path, gradient_checkpointing=True, cuda_graph=True)
