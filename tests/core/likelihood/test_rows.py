"""Which rows run, how often, and that a target's estimate does not depend on the others."""

from __future__ import annotations

import random

import pytest
import torch

from dllm.core.likelihood import LikelihoodConfig, Target, log_likelihoods
from dllm.fast import visibility
from dllm.fast.model import MARKER
from tests.causal_models import causal_model
from tests.core.likelihood.counting import forwards_counted
from tests.core.likelihood.likelihood_reference import Reference
from tests.models import MASK_ID, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

# Products of another number of rows are rounded otherwise: a few float32 ulp of the summed logits.
ULP = 64 * 2.0**-23


@pytest.fixture
def model():
    return tiny("modernbert")


def counted(model, targets, config=None):
    """Estimates, and the (rows, columns) of each forward that they took."""
    log_likelihoods(model, targets, config, mask_id=MASK_ID)  # what is found out about the model is kept
    with forwards_counted() as shapes:
        return log_likelihoods(model, targets, config, mask_id=MASK_ID), shapes


def rows_of(shapes) -> int:
    return sum(rows for rows, _ in shapes)


def mixed(count: int) -> list[Target]:
    rng = random.Random(7)
    targets = []
    for i in range(count):
        context, target = ([rng.randrange(5, 97) for _ in range(n)] for n in (rng.randint(1, 20), (1, 3, 9)[i % 3]))
        targets.append(Target(context, target, seed=i))
    return targets


def test_choices_of_one_token_cost_one_row(model):
    choices = [Target([5, 6, 7], [token], seed=1) for token in (8, 9, 10, 11)]
    found, count = counted(model, choices)
    assert len(count) == 1 and rows_of(count) == 1
    reference = Reference(model)
    for choice, estimate in zip(choices, found, strict=True):
        expected = reference.log_likelihood(choice.context, choice.target)
        assert estimate.log_likelihood == pytest.approx(expected, rel=1e-5) and estimate.rows == 1


def test_longer_choices_share_the_rows_that_are_equal(model):
    choices = [Target([5, 6], [8, 9, token], seed=1) for token in (10, 11)]
    _, count = counted(model, choices)
    assert rows_of(count) == 7 + 3  # the second's three rows that show the last token are its own


def test_published_rows_that_are_equal_run_once(model):
    config = LikelihoodConfig(likelihood="as-published")
    found, count = counted(model, [Target([5, 6], [8], seed=1)], config)
    assert rows_of(count) == 1 and found[0].stderr == 0.0
    dream = LikelihoodConfig(likelihood="as-published", form="dream", batch_size=1)
    found, count = counted(model, [Target([5, 6], [8, 9], seed=1, after=[2])], dream)
    assert rows_of(count) == 3 and found[0].stderr > 0


def test_a_published_draw_that_masks_nothing_costs_nothing(model):
    config = LikelihoodConfig(likelihood="as-published", form="dream", mc_num=1, sampling_eps=0.0)
    targets = [Target([5], [8], seed=seed) for seed in range(30)]
    found = log_likelihoods(model, targets, config, mask_id=MASK_ID)
    assert {estimate.rows for estimate in found} == {0, 1}
    assert all((estimate.log_likelihood == 0) == (estimate.rows == 0) for estimate in found)


def test_the_budget_bounds_a_forward(model):
    _, count = counted(model, mixed(6), LikelihoodConfig(tokens_per_forward=100, mc_num=20))
    assert max(rows * columns for rows, columns in count) <= 100
    assert rows_of(count) == 2 * (1 + 7 + 20)
    _, whole = counted(model, mixed(6), LikelihoodConfig(tokens_per_forward=10**6, mc_num=20))
    assert len(whole) == 1


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
@pytest.mark.parametrize("family", ["modernbert", "bert", "Llama", "blocks"])
def test_estimates_depend_on_nothing_else_in_the_batch(family, cfg_scale):
    model = causal_model("Llama", max_position_embeddings=67) if family in ("Llama", "blocks") else tiny(family)
    setattr(model.config, MARKER, {"block_size": 4} if family == "blocks" else {})
    targets = mixed(9)
    config = LikelihoodConfig(mc_num=12, cfg_scale=cfg_scale)
    together = log_likelihoods(model, targets, config, mask_id=MASK_ID)
    order = random.Random(1).sample(range(9), 9)
    shuffled = log_likelihoods(model, [targets[i] for i in order], config, mask_id=MASK_ID)
    alone = [log_likelihoods(model, [target], config, mask_id=MASK_ID)[0] for target in targets]
    small = LikelihoodConfig(mc_num=12, cfg_scale=cfg_scale, tokens_per_forward=40)
    pieces = log_likelihoods(model, targets, small, mask_id=MASK_ID)
    for other in ([shuffled[order.index(i)] for i in range(9)], alone, pieces):
        for a, b in zip(together, other, strict=True):
            assert b.log_likelihood == pytest.approx(a.log_likelihood, rel=ULP)
            assert b.stderr == pytest.approx(a.stderr, rel=1e-3) and b.rows == a.rows


def test_rows_of_one_length_and_number_have_the_same_bits(model):
    targets = mixed(6)
    first, second = (log_likelihoods(model, targets, mask_id=MASK_ID) for _ in range(2))
    assert first == second


def test_keys_before_a_block_are_computed_once_for_each_question():
    model = causal_model("Llama", max_position_embeddings=68)
    setattr(model.config, MARKER, {"block_size": 8})
    context = list(range(5, 21))  # two blocks
    choices = [Target(context, [30, 31, 32, token], seed=1) for token in (40, 41, 42)]
    found, count = counted(model, choices, LikelihoodConfig(tokens_per_forward=40))
    prefixes = [shape for shape in count if shape[1] == 16]
    assert prefixes == [(1, 16)]
    assert all(columns == 4 for rows, columns in count if columns != 16)
    assert sum(rows for rows, columns in count if columns == 4) == 15 + 7 + 7
    plain = log_likelihoods(model, choices, LikelihoodConfig(cache=False), mask_id=MASK_ID)
    for a, b in zip(found, plain, strict=True):
        assert a.log_likelihood == pytest.approx(b.log_likelihood, rel=ULP)


def test_monte_carlo_of_a_model_lies_in_its_interval(model):
    context, target = [5, 9, 11], [8, 20, 30, 44, 17, 60, 71]
    (exact,) = log_likelihoods(model, [Target(context, target)], LikelihoodConfig(exact_up_to=7), mask_id=MASK_ID)
    config = LikelihoodConfig(mc_num=24)
    targets = [Target(context, target, seed) for seed in range(40)]
    found = log_likelihoods(model, targets, config, mask_id=MASK_ID)
    error = torch.tensor([e.log_likelihood - exact.log_likelihood for e in found])
    stderr = torch.tensor([e.stderr for e in found])
    assert abs(float(error.mean())) < 4 * float(error.std()) / 40**0.5
    assert float((error.abs() < 1.96 * stderr).float().mean()) >= 0.85
    assert 0.7 < float((stderr**2).mean() / (error**2).mean()) ** 0.5 < 2


def test_estimates_are_announced_as_they_come(model):
    heard = {}
    found = log_likelihoods(model, mixed(6), mask_id=MASK_ID, on_estimate=heard.__setitem__)
    assert [heard[i] for i in range(6)] == found


def test_no_gradient_no_dropout_and_the_model_as_before(model):
    model.train()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second = (log_likelihoods(model, mixed(3), mask_id=MASK_ID) for _ in range(2))
    assert first == second and model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("attention, kind", [("seen padding", "lengths"), ("seen rows", "rows")])
def test_rows_run_apart_where_a_model_sees_padding_or_other_rows(model, monkeypatch, attention, kind):
    """As :mod:`dllm.fast.sampling.unpadded` finds it; the estimates are those of each row alone."""
    targets = mixed(5)
    expected = log_likelihoods(model, targets, LikelihoodConfig(mc_num=8), mask_id=MASK_ID)
    name = "why_not_padded" if kind == "lengths" else "why_not_batched"
    monkeypatch.setattr(visibility, name, lambda *_: attention)
    with forwards_counted() as shapes:
        found = log_likelihoods(model, targets, LikelihoodConfig(mc_num=8), mask_id=MASK_ID)
    lengths = {len(t.context) + len(t.target) for t in targets}
    assert {columns for _, columns in shapes} == lengths
    assert (max(rows for rows, _ in shapes) > 1) == (kind == "lengths")
    for a, b in zip(expected, found, strict=True):
        assert b.log_likelihood == pytest.approx(a.log_likelihood, rel=ULP)
