"""Tokens one after the other, front to back and back to front, against a loop in float64."""

from __future__ import annotations

import pytest
import torch

from dllm.core.likelihood import LikelihoodConfig, Target, count_rows, log_likelihoods, rolling_log_likelihoods
from tests.causal_models import causal_model
from tests.core.likelihood.likelihood_reference import Reference
from tests.core.likelihood.test_exact import TOLERANCE, block_model, targets
from tests.models import MASK_ID, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

ORDERS = pytest.mark.parametrize("order", ["ar_ftb", "ar_btf"])


@ORDERS
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_whole_rows(order, cfg_scale):
    """A row for each token; a target of one token has its exact likelihood."""
    model, asked = tiny("modernbert"), targets(8, seed=1, longest=9)
    config = LikelihoodConfig(likelihood=order, cfg_scale=cfg_scale)
    found = log_likelihoods(model, asked, config, mask_id=MASK_ID)
    reference = Reference(model, cfg_scale=cfg_scale)
    for target, estimate in zip(asked, found, strict=True):
        expected = reference.in_order(target.context, target.target, order=order)
        assert estimate.log_likelihood == pytest.approx(expected, rel=TOLERANCE)
        assert (estimate.stderr, estimate.rows) == (0.0, len(target.target))
        assert count_rows(len(target.target), config) == estimate.rows
    single = next(n for n, target in enumerate(asked) if len(target.target) == 1)
    (exact,) = log_likelihoods(model, [asked[single]], LikelihoodConfig(cfg_scale=cfg_scale), mask_id=MASK_ID)
    assert found[single].log_likelihood == pytest.approx(exact.log_likelihood, rel=TOLERANCE)


@ORDERS
def test_dreams_form(order):
    """The logits are shifted, the first token of a row is never masked, and what comes after stays visible."""
    model = causal_model("Qwen2")
    asked = [*targets(4, seed=2, after=1), Target((), (7, 8, 9), 0, (40,))]
    config = LikelihoodConfig(likelihood=order, form="dream", right_shift_logits=True)
    found = log_likelihoods(model, asked, config, mask_id=MASK_ID)
    reference = Reference(model, shift=True)
    for target, estimate in zip(asked, found, strict=True):
        first = 0 if target.context else 1
        expected = reference.in_order(target.context, target.target, target.after, order, first)
        assert estimate.log_likelihood == pytest.approx(expected, rel=TOLERANCE)


@ORDERS
def test_blocks(order):
    model, asked = block_model(), targets(6, seed=4, longest=6)
    found = log_likelihoods(model, asked, LikelihoodConfig(likelihood=order), mask_id=MASK_ID)
    reference = Reference(model, block_size=4)
    for target, estimate in zip(asked, found, strict=True):
        expected = reference.in_order(target.context, target.target, order=order)
        assert estimate.log_likelihood == pytest.approx(expected, rel=TOLERANCE)


@ORDERS
def test_the_greedy_flag_is_that_of_the_exact_sum(order):
    model, asked = tiny("bert"), targets(6, seed=5)
    with torch.no_grad():
        likeliest = int(model(torch.tensor([[5, 6, MASK_ID]])).logits[0, 2].argmax())
    asked.append(Target((5, 6), (likeliest,)))
    exact = log_likelihoods(model, asked, LikelihoodConfig(check_greedy=True), mask_id=MASK_ID)
    found = log_likelihoods(model, asked, LikelihoodConfig(likelihood=order, check_greedy=True), mask_id=MASK_ID)
    assert [one.greedy for one in found] == [one.greedy for one in exact] == [False] * 6 + [True]


def test_the_two_orders_differ_and_texts_have_both():
    model, text = tiny("modernbert"), tuple(range(10, 30))
    both = []
    for order in ("ar_ftb", "ar_btf"):
        config = LikelihoodConfig(likelihood=order)
        (whole,) = rolling_log_likelihoods(model, [text], config, window=12, prefix=(7,), mask_id=MASK_ID)
        assert whole.rows == len(text) and whole.stderr == 0
        both.append(whole.log_likelihood)
    assert abs(both[0] - both[1]) > 1e-3
