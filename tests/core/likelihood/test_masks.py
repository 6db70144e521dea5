"""Masks, their allocation to sizes, and what is concluded from them: no model is needed for this."""

from __future__ import annotations

import collections
import itertools
import math

import pytest
import torch

from dllm.core.likelihood import LikelihoodConfig, count_rows, published
from dllm.core.likelihood.allocation import allocate
from dllm.core.likelihood.design import conclude, design
from dllm.core.likelihood.masks import even_masks
from tests.core.likelihood.likelihood_reference import weight

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = 200


class Losses:
    """Cross-entropies that depend on the position, on how much is masked and on pairs of positions."""

    def __init__(self, n: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.n, self.level = n, torch.rand(n, generator=generator).double() * 4
        self.pair = torch.rand(n, n, generator=generator).double()

        self.known: dict[tuple[int, ...], list[float]] = {}

    def __call__(self, mask) -> list[float]:
        if mask not in self.known:
            self.known[mask] = self.losses(torch.tensor(mask, dtype=torch.int64))
        return self.known[mask]

    def losses(self, index: torch.Tensor) -> list[float]:
        return (self.level[index] + self.pair[index][:, index].sum(1) * 3 / self.n).tolist()

    def exact(self, form: str, eps: float = 1e-3) -> float:
        sizes = range(1, self.n + 1)
        return -math.fsum(
            weight(form, self.n, x, eps) * math.fsum(self(mask))
            for x in sizes
            for mask in itertools.combinations(range(self.n), x)
        )


def estimates(losses: Losses, config: LikelihoodConfig, seeds: int = SEEDS) -> tuple[torch.Tensor, torch.Tensor]:
    plans = (design(losses.n, config, seed) for seed in range(seeds))
    found = [conclude(plan, [losses(mask) for mask in plan.masks]) for plan in plans]
    return tuple(torch.tensor(part).double() for part in zip(*found, strict=True))


# 8 positions, 64 rows: every size has its own stratum; 16 and 5 rows: sizes share them
@pytest.mark.parametrize("mc_num", [64, 16, 5])
@pytest.mark.parametrize("form", ["llada", "dream"])
def test_stratified_estimates_are_unbiased_and_their_errors_calibrated(form, mc_num):
    losses, config = Losses(8), LikelihoodConfig(form=form, mc_num=mc_num, exact_up_to=2, sampling_eps=0.05)
    values, stderrs = estimates(losses, config)
    error = values - losses.exact(form, 0.05)
    assert abs(float(error.mean())) < 4 * float(error.std()) / SEEDS**0.5
    assert 0.8 < float((stderrs**2).mean() / (error**2).mean()) ** 0.5 < 2
    if mc_num > 5:  # of two rows a stratum's own error tells little
        assert float((error.abs() < 1.96 * stderrs).double().mean()) > 0.88


@pytest.mark.parametrize("form", ["llada", "dream"])
def test_published_estimates_of_dream_are_unbiased_and_those_of_llada_nearly(form):
    losses = Losses(7)
    config = LikelihoodConfig(form=form, likelihood="as-published", mc_num=32, sampling_eps=0.05)
    values, stderrs = estimates(losses, config)
    error = values - losses.exact(form, 0.05)
    rounding = 0.0 if form == "dream" else 0.05 * abs(losses.exact(form))
    assert abs(float(error.mean())) < 4 * float(error.std()) / SEEDS**0.5 + rounding
    assert 0.8 < float((stderrs**2).mean() / (error**2).mean()) ** 0.5 < 2


def test_the_estimate_varies_less_than_the_published_one_at_equal_rows():
    losses = Losses(10)
    ours, _ = estimates(losses, LikelihoodConfig(mc_num=64))
    theirs, _ = estimates(losses, LikelihoodConfig(mc_num=64, likelihood="as-published"))
    assert float(theirs.var()) > 3 * float(ours.var())


@pytest.mark.parametrize("n, mc_num", [(8, 100), (7, 20), (40, 128), (200, 128), (1000, 30), (12, 7), (9, 1)])
def test_rows_are_spent_exactly_and_no_mask_twice(n, mc_num):
    strata = allocate(n, mc_num)
    assert sum(stratum.rows for stratum in strata) == mc_num
    assert [x for stratum in strata for x in stratum.sizes] == list(range(1, n + 1))
    plan = design(n, LikelihoodConfig(mc_num=mc_num, exact_up_to=0), seed=3)
    assert len(plan.masks) == mc_num
    alone = [mask for mask, number in zip(plan.masks, plan.strata, strict=True) if len(strata[number].sizes) == 1]
    assert len(set(alone)) == len(alone)
    assert all(1 <= len(mask) <= n and mask == tuple(sorted(set(mask))) for mask in plan.masks)


def test_sizes_get_two_rows_and_few_masks_are_enumerated():
    strata = allocate(10, 128)
    assert all(len(stratum.sizes) == 1 and stratum.rows >= min(2, stratum.masks) for stratum in strata)
    assert (strata[0].rows, strata[-1].rows) == (10, 1)


def test_weights_of_a_constant_loss_sum_to_what_the_sum_over_all_masks_gives():
    for n, mc_num in ((20, 64), (20, 8), (300, 50)):
        plan = design(n, LikelihoodConfig(mc_num=mc_num), seed=1)
        # loss 1 at each position: sum over sizes of 1 = n, whatever sizes were drawn in a stratum
        assert sum(w * len(mask) for w, mask in zip(plan.weights, plan.masks, strict=True)) == pytest.approx(n)


def test_all_masks_are_taken_where_that_costs_no_more():
    assert design(6, LikelihoodConfig(), seed=0).exact and not design(7, LikelihoodConfig(), seed=0).exact
    assert design(7, LikelihoodConfig(mc_num=127), seed=0).exact
    assert [count_rows(n, LikelihoodConfig(mc_num=20)) for n in (4, 6, 7)] == [15, 63, 20]
    assert count_rows(2, LikelihoodConfig(likelihood="as-published")) == 3


def test_masks_of_a_size_are_even_over_positions_and_all_equally_likely():
    counts = collections.Counter()
    for seed in range(600):
        (masks,) = even_masks(6, [[2] * 3], seed)
        assert collections.Counter(i for mask in masks for i in mask) == dict.fromkeys(range(6), 1)
        (more,) = even_masks(6, [[2] * 8], seed)  # the complement is drawn: seven are left out
        assert len(set(more)) == 8
        counts.update(more)
    expected = 600 * 8 / 15
    assert len(counts) == 15
    assert sum((c - expected) ** 2 / expected for c in counts.values()) < 36.1  # chi-square, 14 degrees, 0.1 %


def test_equal_seeds_share_masks_and_others_do_not():
    for config in (LikelihoodConfig(), LikelihoodConfig(likelihood="as-published")):
        assert design(20, config, 5).masks == design(20, config, 5).masks
        assert design(20, config, 5).masks != design(20, config, 6).masks


def test_published_sizes_round_half_to_even():
    assert collections.Counter(published.sizes(1, 2, 32)) == {1: 15, 2: 17}
    assert collections.Counter(published.sizes(2, 2, 32)) == {1: 15, 2: 17}
    for n in (1, 3, 7, 40):
        for k in {1, 2, n}:
            for batch in (1, 2, 5, 32):
                steps = [k + i * n / batch for i in range(batch)]  # Python's round goes half to even, too
                assert published.sizes(k, n, batch) == [(round(step) - 1) % n + 1 for step in steps]


def test_published_masks_have_the_sizes_and_weights_of_their_forms():
    masks, weights = published.draw("llada", 5, 1, mc_num=64, batch=32, eps=0.0)
    first = [len(mask) for mask in masks[:32]]
    assert first in [published.sizes(k, 5, 32) for k in range(1, 6)]
    assert weights == tuple(5 / len(mask) / 64 for mask in masks)
    masks, weights = published.draw("dream", 50, 1, mc_num=64, batch=64, eps=0.01)
    times = sorted(1 / (w * 64) for w in weights)
    assert times == pytest.approx([times[0] + i * 0.99 / 64 for i in range(64)])  # spread evenly
    shares = [len(mask) / 50 - 1 / (w * 64) for mask, w in zip(masks, weights, strict=True)]
    assert abs(sum(shares) / 64) < 0.04 and max(map(abs, shares)) < 0.35
