"""Edit Flows: what is left to edit at a time, its law, and the loss, against published numbers and plain formulae."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from dllm.core.edits import Edits, edit_weight, noised_columns, remaining_edits, rows_of, without_blanks
from dllm.core.schedulers import LinearKappaScheduler, get_kappa_scheduler_class, make_kappa_scheduler
from dllm.fast.training.edit_loss import EditTargets, edit_flow_loss
from dllm_kernels import align_tokens, philox
from dllm_kernels.align_tokens import BLANK, Alignment

FACTS = json.loads((Path(__file__).parent / "data" / "editflow.json").read_text())
KINDS = ("SUB", "DEL", "INS")


def stack(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows), default=0)
    lengths = torch.tensor([len(row) for row in rows])
    return torch.tensor([row + [0] * (width - len(row)) for row in rows]).view(len(rows), width), lengths


def align(x0: list[list[int]], x1: list[list[int]]) -> Alignment:
    return align_tokens(*stack(x0), *stack(x1))


def applied(text: list[int], edits: list[tuple[int, int, int]]) -> list[int]:
    """A text with edits made, each (kind, position, token), those at one position in their order."""
    found = [[token] for token in text]
    for kind, position, token in edits:
        if KINDS[kind] == "INS":
            found[position].append(token)
        else:
            found[position][0] = None if KINDS[kind] == "DEL" else token
    return [token for part in found for token in part if token is not None]


def texts(count: int, seed: int, longest: int = 12) -> list[list[int]]:
    """Random texts behind one first token."""
    draw = random.Random(seed)
    return [[9, *(draw.randrange(5) for _ in range(draw.randint(0, longest)))] for _ in range(count)]


def by_sample(edits: Edits, sample: int) -> list[tuple[int, int, int]]:
    mine = edits.sample == sample
    return list(zip(*(part[mine].tolist() for part in (edits.kind, edits.position, edits.token)), strict=True))


@pytest.mark.parametrize("fact", FACTS["edits"], ids=range(60))
def test_published_edits(fact):
    found = by_sample(remaining_edits(torch.tensor([fact["zt"]]), torch.tensor([fact["z1"]])), 0)
    expected = [(kind, row, BLANK if token is None else token) for kind, row, token in fact["edits"]]
    assert [(KINDS[kind], row, token) for kind, row, token in found] == expected


@pytest.mark.parametrize("t", [0.0, 0.4, 0.9, 1.0])
def test_the_edits_left_make_the_data(t):
    x0, x1 = texts(60, seed=1), texts(60, seed=2)
    aligned, seeds = align(x0, x1), torch.arange(60)
    zt = noised_columns(aligned, torch.full((60,), t), seeds=seeds, epoch=0, scheduler=make_kappa_scheduler("cubic"))
    edits, (tokens, lengths) = remaining_edits(zt, aligned.z1), without_blanks(zt, pad=0)
    for sample in range(60):
        text = tokens[sample, : lengths[sample]].tolist()
        assert applied(text, by_sample(edits, sample)) == x1[sample]
        if t in (0, 1):
            assert text == (x1 if t else x0)[sample]


@pytest.mark.parametrize("name", ["cubic", "linear", "cosine"])
def test_expected_number_of_edits_left(name):
    """(1 - kappa(t)) times the distance, within 5 standard deviations of a binomial."""
    n, scheduler, t = 4000, make_kappa_scheduler(name), 0.3
    aligned = align([[9, 1, 2, 3, 4, 1, 1]] * n, [[9, 2, 2, 5, 4, 6, 6, 6, 2]] * n)
    distance = int((aligned.z0[0] != aligned.z1[0]).sum())
    zt = noised_columns(aligned, torch.full((n,), t), seeds=torch.arange(n), epoch=0, scheduler=scheduler)
    left, kept = len(remaining_edits(zt, aligned.z1).kind), 1 - scheduler.kappa(t)
    spread = math.sqrt(n * distance * kept * (1 - kept))
    assert distance > 4 and abs(left - n * distance * kept) < 5 * spread


def test_draws_of_a_sample_are_its_own():
    """Alone, in a batch and beside longer texts; another epoch gives others."""
    x0, x1 = texts(30, seed=5), texts(30, seed=6)
    options = dict(epoch=2, scheduler=LinearKappaScheduler())
    times, seeds = torch.full((30,), 0.5), torch.arange(30)
    batch = noised_columns(align(x0, x1), times, seeds=seeds, **options)
    for row in (0, 7, 29):
        aligned = align([x0[row]], [x1[row]])
        alone = noised_columns(aligned, times[:1], seeds=seeds[row : row + 1], **options)[0, : int(aligned.length)]
        assert torch.equal(batch[row, : len(alone)], alone)
    assert not torch.equal(batch, noised_columns(align(x0, x1), times, seeds=seeds, **options | dict(epoch=3)))


def test_weights():
    t = torch.tensor([0.0, 0.25, 0.99])
    assert edit_weight(LinearKappaScheduler(), t).tolist() == pytest.approx([1, 4 / 3, 100], rel=2e-4)
    assert edit_weight(LinearKappaScheduler(), t, 20.0).tolist() == pytest.approx([1, 4 / 3, 20], rel=1e-5)


class Given(nn.Linear):
    """A head that gives the logits of a fact: its input is a one-hot vector of the position."""

    def __init__(self, logits: torch.Tensor):
        positions, words = logits.shape
        super().__init__(positions, words, bias=False)
        self.weight = nn.Parameter(logits.T.contiguous())


def plain_loss(rates, logits, tokens, edits, lengths, weight) -> torch.Tensor:
    """The formula, an edit at a time, float64."""
    rates, logits = rates.double(), [part.double().log_softmax(-1) for part in logits]
    total = torch.zeros((), dtype=torch.float64)
    for sample, c in enumerate(weight.double()):
        inside = rates[sample, : lengths[sample]].sum()
        for kind, position, token in by_sample(edits, sample):
            inside = inside - rates[sample, position, kind].clamp(min=1e-12).log()
            if KINDS[kind] != "DEL":
                inside = inside - logits[kind // 2][sample, position, token]
        total = total + c * inside
    return total


@pytest.mark.parametrize("fact", FACTS["loss"], ids=lambda fact: f"{fact['scheduler']} {fact['per_position']}")
def test_published_losses(fact, monkeypatch):
    """Their draws stand in for ours; the texts, their padding and the loss are compared."""
    scheduler = get_kappa_scheduler_class(fact["scheduler"])()
    times = (1 - 1e-3) * torch.tensor(fact["draws"][0])[:, 0]
    aligned = align(fact["x0"], fact["x1"])
    draws = torch.zeros(aligned.z0.shape)
    for row, drawn in enumerate(fact["draws"][1:]):
        assert len(drawn) == aligned.length[row]
        draws[row, : len(drawn)] = torch.tensor(drawn)
    monkeypatch.setattr(philox, "uniform", lambda *address: draws)
    zt = noised_columns(aligned, times, seeds=torch.zeros(3, dtype=torch.int64), epoch=0, scheduler=scheduler)
    tokens, lengths = without_blanks(zt, pad=0)
    assert tokens.tolist() == fact["input_ids"]
    assert (torch.arange(tokens.shape[1]) < lengths[:, None]).int().tolist() == fact["mask"]
    rates, logits = torch.tensor(fact["rates"]).movedim(0, -1), torch.tensor(fact["logits"])
    weight = edit_weight(scheduler, times, 20.0) / 3
    if fact["per_position"]:
        weight = weight / torch.tensor([len(x1) for x1 in fact["x1"]])
    edits = remaining_edits(zt, aligned.z1)
    hidden = torch.eye(tokens.numel()).view(*tokens.shape, -1)
    heads = [Given(part.flatten(0, 1)) for part in logits]
    targets = EditTargets(lengths, weight, **rows_of(edits, tokens.shape[1]))
    found = edit_flow_loss(hidden, rates, *heads, targets)
    exact = float(plain_loss(rates, logits, tokens, edits, lengths, weight))
    assert found.loss.item() == pytest.approx(fact["loss"], rel=3e-6)
    assert found.loss.item() == pytest.approx(exact, rel=1e-6)
    assert float((weight * found.of_samples).sum()) == pytest.approx(exact, rel=1e-6)


def small_batch(kinds: tuple[int, ...], seed: int = 0) -> dict:
    """Random hidden states, rates and heads, and a few edits of these kinds at random positions."""
    draw = torch.Generator().manual_seed(seed)
    columns, width, words, count = 6, 8, 11, 5 * len(kinds)
    drawn = [torch.randint(high, (count,), generator=draw) for high in (3, 4, words)]
    kind = torch.tensor(kinds, dtype=torch.int64).repeat(5)
    torch.manual_seed(seed)
    return dict(
        hidden=torch.randn(3, columns, width, generator=draw).requires_grad_(),
        rates=torch.rand(3, columns, 3, generator=draw).requires_grad_(),
        heads=[nn.Linear(width, words), nn.Linear(width, words)],
        edits=Edits(kind, *drawn[:2], torch.where(kind == 1, BLANK, drawn[2])),
        lengths=torch.tensor([6, 4, 5]),
        weight=torch.rand(3, generator=draw),
    )


def loss_of(batch: dict, **options) -> torch.Tensor:
    rows = rows_of(batch["edits"], batch["hidden"].shape[1])
    targets = EditTargets(batch["lengths"], batch["weight"], **rows)
    return edit_flow_loss(batch["hidden"], batch["rates"], *batch["heads"], targets, **options).loss


@pytest.mark.parametrize("right_shift", [False, True])
def test_gradients_are_those_of_the_formula(right_shift):
    batch = small_batch((0, 1, 2))
    if right_shift:
        batch["edits"] = batch["edits"]._replace(position=batch["edits"].position + 1)
    leaves = [batch["hidden"], batch["rates"], *(p for head in batch["heads"] for p in head.parameters())]
    found = torch.autograd.grad(loss_of(batch, right_shift=right_shift), leaves)
    logits = [head(batch["hidden"]) for head in batch["heads"]]
    if right_shift:
        logits[0] = torch.cat([torch.zeros_like(logits[0][:, :1]), logits[0][:, :-1]], dim=1)
    plain = plain_loss(batch["rates"], logits, None, batch["edits"], batch["lengths"], batch["weight"])
    for ours, theirs in zip(found, torch.autograd.grad(plain, leaves), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_a_substitution_that_nothing_predicts_has_no_token_loss():
    batch, first = small_batch((0,)), torch.tensor([0])
    batch["edits"] = Edits(first, first, first, torch.tensor([3]))
    hidden, weight, bias = torch.autograd.grad(
        loss_of(batch, right_shift=True), [batch["hidden"], *batch["heads"][0].parameters()]
    )
    assert not hidden.any() and not weight.any() and not bias.any()


@pytest.mark.parametrize("kinds", [(), (0,), (1,), (2,), (1, 2)], ids=str)
def test_every_head_has_a_gradient(kinds):
    """Also where a batch has no edit of its kind: DDP and ZeRO wait for each weight's."""
    batch = small_batch(kinds)
    loss_of(batch).backward()
    for kind, head in zip((0, 2), batch["heads"], strict=True):
        for parameter in head.parameters():
            assert parameter.grad is not None and bool(parameter.grad.any()) == (kind in kinds)
    assert bool(batch["rates"].grad.any())


def test_the_heads_meet_the_vocabulary_at_edits_only():
    """No tensor of the forward and the backward has a vocabulary for each position."""
    batch, seen = small_batch((0, 2)), []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            result = operation(*args, **(kwargs or {}))
            seen.extend(part for part in torch.utils._pytree.tree_leaves(result) if isinstance(part, torch.Tensor))
            return result

    positions, words = 18, 11
    with Watch():
        loss_of(batch).backward()
    assert seen and max(part.numel() for part in seen if part.shape[-1:] == (words,)) < positions * words
