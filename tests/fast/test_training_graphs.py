"""Training steps as graphs against eager ones. What a capture does needs a GPU; all around it does not: a stand-in runs
the step on the captured memory, so that gradients doubled, not reset or not handed on, stale rows and mixed-up shapes
show here too."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import random
from collections import Counter

import pytest
import torch
from torch import nn

from dllm.fast import capture
from dllm.fast.capture import CaptureError
from dllm.fast.training import graphs as training_graphs
from dllm.fast.training.graphs import WORTH_CAPTURING, Batch, TrainingGraphs, forward_and_backward, row_capacity
from tests.graph_stand_in import install
from tests.models import tiny

pytestmark = pytest.mark.usefixtures("one_thread")
VOCABULARY, WIDTH = 40, 8


@pytest.fixture
def stand_in(monkeypatch):
    return install(monkeypatch)


class Small(nn.Module):
    """A model with a weight that no forward uses, one that some do, running means and an LM head."""

    def __init__(self, dropout=0.0, sparse=False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, sparse=sparse)
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(dropout), nn.Tanh())
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.never, self.sometimes = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(WIDTH))

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, attention_mask=None, scale=None):
        hidden = self.embedding(input_ids)
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        hidden = self.body(hidden.flatten(0, 1)).view_as(hidden)
        return self.head(hidden if scale is None else hidden * scale * self.sometimes)


def batch_of(shape=(2, 6), rows=5, seed=0, vocabulary=VOCABULARY, **inputs):
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, vocabulary, shape, generator=draw)
    chosen = torch.randperm(tokens.numel(), generator=draw)[:rows]
    targets = torch.randint(5, vocabulary, (rows,), generator=draw)
    return Batch({"input_ids": tokens, **inputs}, chosen, targets, torch.rand(rows, generator=draw) + 0.1)


def eager(model, batch):
    return forward_and_backward(model, batch)


def by(captured):
    def step(model, batch):
        return captured.step(model, batch.inputs, rows=batch.rows, targets=batch.targets, row_weight=batch.row_weight)

    return step


def same(a, b):
    assert (a is None) == (b is None)
    assert a is None or torch.equal(a, b)


def train(model, step, batches, accumulation=1, clip=0.1, between=lambda number: None):
    """Optimizer steps over the batches as transformers takes them; losses, nlls and the gradients of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    results, gradients = [], []
    for number, batch in enumerate(batches, start=1):
        results.append(step(model, batch))
        if number % accumulation == 0:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            gradients.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
            optimizer.step()
            model.zero_grad()
            between(number)
    return results, gradients


def check_equal(model, captured, batches, **options):
    """The same run, eager and graphed: losses, nlls, gradients, weights and running means, bit for bit."""
    other = copy.deepcopy(model)
    expected, found = train(other, eager, batches, **options), train(model, by(captured), batches, **options)
    for ours, theirs in zip(found[0], expected[0], strict=True):
        same(ours.loss, theirs.loss)
        same(ours.nll, theirs.nll)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            same(a, b)
    for name, value in model.state_dict().items():
        same(value, other.state_dict()[name])


def mixed(count=40):
    """Four shapes in no order: rows of two capacities, with and without a mask, with and without a number."""
    draw, batches = random.Random(1), []
    for seed in range(count):
        kind = draw.randrange(4)
        shape = ((2, 6), (2, 6), (3, 70), (2, 5))[kind]
        extra = {} if kind != 2 else {"attention_mask": (torch.arange(70) < draw.randint(1, 70)).long().expand(3, 70)}
        extra |= {"scale": 0.5} if kind == 3 else {}
        most = 150 if kind == 2 else 9
        batches.append(batch_of(shape, draw.randint(0, most), seed, **extra))
    return batches


@pytest.mark.parametrize("cuda_graph", [None, True])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_steps_equal_eager_ones(stand_in, cuda_graph, accumulation):
    captured = TrainingGraphs(cuda_graph)
    batches = mixed()
    check_equal(Small(), captured, batches, accumulation=accumulation)
    times = Counter((b.inputs["input_ids"].shape, b.capacity, *b.inputs) for b in batches)
    rented = 0 if cuda_graph else WORTH_CAPTURING
    assert stand_in.captures == len(captured) == sum(n > rented for n in times.values()) >= 2
    assert stand_in.replays == sum(max(0, n - rented) for n in times.values())
    assert captured.why_eager is None


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_transformers(stand_in, family):
    dropouts = {} if family == "modernbert" else dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = tiny(family, **dropouts).train()
    batches = [batch_of((2, 9), rows=3 + seed, seed=seed, vocabulary=97) for seed in range(6)]
    check_equal(model, TrainingGraphs(True), batches, accumulation=2)
    assert stand_in.captures == 1 and stand_in.replays == 6


def test_weights_changed_in_place_between_steps(stand_in):
    """What averaging of weights, loading a checkpoint and pruning do."""
    model = Small()
    models = iter(2 * [model])  # both runs see the same changes

    def double(number):
        if number % 4 == 0:
            with torch.no_grad():
                running.head.weight.mul_(2)

    other, captured = copy.deepcopy(model), TrainingGraphs(True)
    batches = [batch_of(seed=seed) for seed in range(12)]
    running = other
    expected, _ = train(other, eager, batches, between=double)
    running = next(models)
    found, _ = train(model, by(captured), batches, between=double)
    assert stand_in.captures == 1
    for ours, theirs in zip(found, expected, strict=True):
        same(ours.loss, theirs.loss)


def test_evaluation_in_between(stand_in):
    model, captured, batch = Small(), TrainingGraphs(True), batch_of()
    step = by(captured)
    step(model, batch)
    model.eval()
    with torch.no_grad():
        before = model(batch.inputs["input_ids"])
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.train()
    step(model, batch)
    model.eval()
    with torch.no_grad():
        assert before.shape == model(batch.inputs["input_ids"]).shape
    assert stand_in.captures == 1
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        same(p.grad, None if gradient is None else 2 * gradient)  # the second added to the first


def test_results_are_not_overwritten(stand_in):
    model, step = Small(), by(TrainingGraphs(True))
    first = step(model, batch_of(seed=1))
    loss, nll = first.loss.clone(), first.nll.clone()
    step(model, batch_of(seed=2))
    same(first.loss, loss)
    same(first.nll, nll)
    assert not first.loss.requires_grad and len(nll) == 5


def test_gradients_that_are_not_ours_are_added_to(stand_in):
    """Of an eager forward of someone's, before and after."""
    model, step, own = Small(), by(TrainingGraphs(True)), torch.randn(VOCABULARY)
    plain = copy.deepcopy(model)
    for m, do in ((model, step), (plain, eager)):
        m.head.bias.grad = own.clone()
        do(m, batch_of())
        m.head.bias.sum().backward()
        do(m, batch_of(seed=3))
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        same(a.grad, b.grad)


def test_gradients_zeroed_in_place(stand_in):
    model, step = Small(), by(TrainingGraphs(True))
    step(model, batch_of())
    once = model.head.weight.grad.clone()
    model.zero_grad(set_to_none=False)
    step(model.eval(), batch_of())  # another shape, the same buffers; no running means
    model.zero_grad(set_to_none=False)
    step(model.train(), batch_of())
    same(model.head.weight.grad, once)


def test_when_a_shape_is_captured(stand_in):
    model, captured = Small(), TrainingGraphs()
    for _ in range(WORTH_CAPTURING):
        by(captured)(model, batch_of())
    assert stand_in.captures == 0
    by(captured)(model, batch_of())
    by(captured)(model, batch_of((2, 5)))
    assert stand_in.captures == 1 and stand_in.replays == 1


def test_places_go_to_shapes_that_come(stand_in):
    """Three shapes in turn for two places: the third waits, and no one is captured twice. Then the first stays away."""
    model, captured = Small(), TrainingGraphs(size=2)
    shapes = [(2, length) for length in (4, 5, 6)]
    for shape in 10 * shapes:
        by(captured)(model, batch_of(shape))
    assert stand_in.captures == len(captured) == 2
    for shape in 10 * shapes[1:]:
        by(captured)(model, batch_of(shape))
    assert stand_in.captures == 3 and len(captured) == 2
    before = stand_in.replays
    for shape in shapes[1:]:
        by(captured)(model, batch_of(shape))
    assert stand_in.replays == before + 2


def test_insisting_replays_every_step(stand_in):
    model, captured = Small(), TrainingGraphs(True, size=2)
    for count, shape in enumerate(3 * [(2, 4), (2, 5), (2, 6)], start=1):
        by(captured)(model, batch_of(shape))
        assert stand_in.replays == count and len(captured) <= 2


def test_what_is_remembered_of_shapes_is_bounded(stand_in):
    captured = TrainingGraphs(size=1)
    model = Small()
    for length in range(2, 30):
        by(captured)(model, batch_of((1, length), rows=1))
    assert len(captured._candidates) == 8 and len(captured) == 0


def test_what_makes_another_shape(stand_in):
    model, captured, seeds = Small(), TrainingGraphs(True), itertools.count()

    def step(expected, shape=(2, 40), rows=5, **inputs):
        before = stand_in.captures
        by(captured)(model, batch_of(shape, rows, next(seeds), **inputs))
        assert stand_in.captures - before == expected

    step(1)
    step(0, rows=64)  # of the same capacity
    step(1, rows=65)
    step(1, shape=(1, 80))
    step(1, scale=0.5)
    step(1, scale=0.25)  # a number is part of the graph
    step(1, attention_mask=torch.ones(2, 40, dtype=torch.int64))
    step(1, attention_mask=torch.ones(2, 40))
    model.eval()
    step(1)
    model.train()
    step(0)
    model.body[0].weight.requires_grad_(False)
    step(1)
    assert model.body[0].weight.grad is not None  # of earlier steps, as it was
    model.body[0].weight.requires_grad_(True)
    step(0)
    model.head.weight.data = model.head.weight.data.clone()
    step(1)
    handle = model.body.register_forward_hook(nn.utils.parametrize.is_parametrized)
    handle.remove()
    step(0)
    with torch.autocast("cpu", torch.bfloat16):
        step(1)
    step(0)


def test_replaced_weights_are_never_stale(stand_in):
    model, captured = Small(), TrainingGraphs(True)
    by(captured)(model, batch_of())
    model.zero_grad()
    for p in model.parameters():
        p.data = p.data * 1.5
    plain = copy.deepcopy(model)
    same(by(captured)(model, batch_of()).loss, eager(plain, batch_of()).loss)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        same(a.grad, b.grad)


def test_another_model(stand_in):
    captured = TrainingGraphs(True)
    by(captured)(Small(), batch_of())
    other = Small()
    plain = copy.deepcopy(other)
    same(by(captured)(other, batch_of()).loss, eager(plain, batch_of()).loss)
    assert len(captured) == 1


def everything(model):
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return [*grads, *(b.clone() for b in model.buffers()), torch.get_rng_state(), random.getstate()]


def refuse(*arguments):
    raise CaptureError("RuntimeError: called a synchronizing CUDA operation")


@pytest.mark.parametrize("stage", ["warm_up", "record"])
def test_a_failed_capture_does_no_damage(stand_in, monkeypatch, stage):
    """Not even a half-done one: the warm-ups have run, on gradients that were there."""
    whole = capture.warm_up
    monkeypatch.setattr(capture, stage, lambda *a: (whole(a[0], a[1]) if stage == "warm_up" else None, refuse()))
    model = Small()
    eager(model, batch_of())
    model.head.bias.grad.mul_(3)
    before = everything(model)
    with pytest.raises(RuntimeError, match=r"cuda_graph=True, but the training step cannot be captured: .*synchron"):
        by(TrainingGraphs(True))(model, batch_of(seed=1))
    for a, b in zip(everything(model), before, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_failed_capture_leaves_eager_steps(stand_in, monkeypatch, caplog):
    monkeypatch.setattr(capture, "record", refuse)
    captured = TrainingGraphs()
    with caplog.at_level(logging.WARNING, "dllm.fast"):
        check_equal(Small(), captured, mixed(), accumulation=2)
    assert caplog.text.count("eager training steps, because the step cannot be captured: RuntimeError: called") == 1
    assert "synchronizing" in captured.why_eager and len(captured) == 0


def test_numbers_drawn_on_the_host(stand_in, caplog):
    """A replay would drop the same layers again. (On a CPU dropout itself draws there.) The run goes on unharmed."""
    model, captured = Small(dropout=0.5), TrainingGraphs()
    batches = [batch_of(seed=seed) for seed in range(8)]
    other = copy.deepcopy(model)
    torch.manual_seed(5)
    expected, _ = train(other, eager, batches)
    torch.manual_seed(5)
    found, _ = train(model, by(captured), batches)
    assert "draws random numbers on the host" in caplog.text and stand_in.captures == 0
    for ours, theirs in zip(found, expected, strict=True):
        same(ours.loss, theirs.loss)
    for name, value in model.state_dict().items():
        same(value, other.state_dict()[name])


def double(gradient):
    return 2 * gradient


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # the user's own, on inputs without gradients
@pytest.mark.parametrize(
    "watch, reason",
    [
        (lambda m: m.head.weight.register_hook(double), "the gradient of head.weight has a hook"),
        (
            lambda m: m.never.register_post_accumulate_grad_hook(print),
            "the gradient of never has a hook",
        ),
        (lambda m: m.body[0].register_forward_hook(lambda *a: None), r"body\.0 has a hook \(.*lambda"),
        (lambda m: m.register_full_backward_hook(lambda *a: None), "the model has a hook"),
    ],
)
def test_hooks_that_a_replay_would_not_call(stand_in, caplog, watch, reason):
    model = Small()
    watch(model)
    with pytest.raises(RuntimeError, match=reason):
        by(TrainingGraphs(True))(model, batch_of())
    captured = TrainingGraphs()
    for _ in range(WORTH_CAPTURING + 1):
        by(captured)(model, batch_of())
    assert captured.why_eager and "would not call" in caplog.text


def test_a_hook_that_comes_later(stand_in):
    """Steps that were captured without it are not replayed any more."""
    model, captured, seen = Small(), TrainingGraphs(), []
    for _ in range(WORTH_CAPTURING + 2):
        by(captured)(model, batch_of())
    assert stand_in.replays == 2
    model.head.register_forward_pre_hook(lambda *a: seen.append(1))
    for _ in range(WORTH_CAPTURING + 2):
        by(captured)(model, batch_of())
    assert stand_in.replays == 2 and len(seen) >= WORTH_CAPTURING + 2


def test_hooks_of_libraries_are_part_of_the_graph(stand_in):
    model = tiny("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    model.enable_input_require_grads()
    check_equal(model, TrainingGraphs(True), [batch_of(seed=s, vocabulary=97) for s in range(4)])
    assert stand_in.captures == 1


def test_what_is_no_plain_step(stand_in):
    with pytest.raises(RuntimeError, match="input past is a list, no tensor"):
        by(TrainingGraphs(True))(Small(), batch_of(past=[1]))
    with pytest.raises(RuntimeError, match=r"gradient of weight \d is torch.sparse_coo, not dense"):
        by(TrainingGraphs(True))(Small(sparse=True), batch_of())


def test_no_gpu():
    with pytest.raises(RuntimeError, match=r"cannot be captured: .*no CUDA graphs on cpu"):
        by(TrainingGraphs(True))(Small(), batch_of())


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(cuda_graph=1), TypeError, "None, True or False, got int"),
        (dict(cuda_graph=False), ValueError, "None or True .*got False"),
        (dict(size=0), ValueError, "size must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        TrainingGraphs(**arguments)


def test_bad_batches(stand_in):
    model, batch = Small(), batch_of()
    for cuda_graph in (None, True):
        step = TrainingGraphs(cuda_graph).step
        with pytest.raises(ValueError, match=r"one shape \[N\], got \[\[5\], \[5\], \[4\]\]"):
            step(model, batch.inputs, rows=batch.rows, targets=batch.targets, row_weight=batch.row_weight[1:])
        with pytest.raises(ValueError, match="must not hold labels"):
            step(
                model,
                {**batch.inputs, "labels": batch.targets},
                **dict(rows=batch.rows, targets=batch.targets),
                row_weight=batch.row_weight,
            )


@pytest.mark.parametrize("positions", [1, 64, 500, 512, 513, 4096, 100_000])
def test_row_capacity(positions):
    """Room for all, little of it wasted, few sizes."""
    capacities = set()
    for count in {*range(0, positions + 1, 1 + positions // 200), positions}:
        capacity = row_capacity(count, positions)
        assert capacity >= max(count, 1) and capacity % 64 == 0
        assert capacity - count <= max(64, math.ceil(positions / 8 / 64) * 64)
        capacities.add(capacity)
    assert len(capacities) <= 8
    assert row_capacity(3 * positions, positions) >= 3 * positions  # rows may repeat


def test_a_batch_in_captured_memory():
    """Fewer rows than before: the rest is row 0, target 0, weight 0."""
    own, small = batch_of(rows=9).copy(), batch_of(rows=2, seed=1)
    own.load(small)
    assert torch.equal(own.inputs["input_ids"], small.inputs["input_ids"])
    for ours, given in ((own.rows, small.rows), (own.targets, small.targets), (own.row_weight, small.row_weight)):
        assert len(ours) == 64 and torch.equal(ours[:2], given) and not ours[2:].any()
    assert training_graphs.MAX_GRAPHS >= 8
