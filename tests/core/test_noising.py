"""Corruption: its law, and that it depends on the sample, the seed and the epoch alone."""

from __future__ import annotations

import pytest
import torch

from dllm.core.noising import corrupt, diffusion_times, real_lengths
from dllm.core.schedulers import CosineAlphaScheduler, LinearAlphaScheduler
from dllm_kernels.philox import sample_seeds
from tests.core.reference import Objective, corrupted
from tests.goodness_of_fit import P_MIN, binomial_p, ks_p

MASK = 3


def draw(tokens, maskable=None, *, seed=1, epoch=0, pad=None, attention_mask=None, scheduler=None, **times):
    lengths = real_lengths(tokens, attention_mask, pad)
    seeds = sample_seeds(tokens, lengths, seed)
    t = diffusion_times(seeds, epoch, **({"low": 1e-3, "high": 1.0} | times))
    maskable = torch.ones_like(tokens, dtype=torch.bool) if maskable is None else maskable
    scheduler = scheduler or LinearAlphaScheduler()
    return t, corrupt(tokens, maskable, t, seeds=seeds, epoch=epoch, scheduler=scheduler, mask_id=MASK)


def texts(rows, columns, seed=0):
    return torch.randint(5, 1000, (rows, columns), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha, scheduler", [("linear", LinearAlphaScheduler()), ("cosine", CosineAlphaScheduler())])
def test_against_the_formulae_one_token_at_a_time(alpha, scheduler):
    tokens = texts(6, 9)
    labels = torch.where(tokens % 3 == 0, -100, tokens)
    _, noised = draw(tokens, labels != -100, seed=7, epoch=2, scheduler=scheduler, low=0.1, high=0.9)
    for row in range(6):
        objective = Objective(alpha=alpha, low=0.1, high=0.9)
        expected = corrupted(tokens[row].tolist(), labels[row].tolist(), 7, 2, MASK, objective)
        assert noised.tokens[row].tolist() == expected.noised
        assert noised.masked[row].nonzero().flatten().tolist() == expected.masked


def test_times_are_uniform_and_masks_have_their_probability():
    tokens = texts(4000, 8)
    t, noised = draw(tokens)
    assert ks_p((t - 1e-3) / (1 - 1e-3)) > P_MIN
    assert t.min() >= 1e-3 and t.max() <= 1
    for low, high in ((0, 0.2), (0.4, 0.6), (0.8, 1)):
        inside = (t >= low) & (t < high)
        masked, trials = int(noised.masked[inside].sum()), int(inside.sum()) * 8
        assert binomial_p(masked, trials, float(t[inside].mean())) > P_MIN


def test_positions_are_independent():
    """At t = 1/2 two neighbours agree half of the time."""
    _, noised = draw(texts(4000, 8), low=0.499999, high=0.5)
    agree = noised.masked[:, 1:] == noised.masked[:, :-1]
    assert binomial_p(int(agree.sum()), agree.numel(), 0.5) > P_MIN


def test_only_what_may_be_masked_is():
    tokens = texts(50, 10)
    maskable = torch.arange(10) >= 6
    _, noised = draw(tokens, maskable.expand(50, 10), low=0.9, high=1.0)
    assert not noised.masked[:, :6].any() and noised.masked[:, 6:].any()
    assert torch.equal(noised.tokens, torch.where(noised.masked, MASK, tokens))


def test_a_sample_is_the_same_in_any_batch_and_under_any_padding():
    tokens = texts(5, 7)
    t, noised = draw(tokens)
    order = torch.tensor([3, 0, 4])
    t_other, other = draw(tokens[order])
    assert torch.equal(t_other, t[order]) and torch.equal(other.masked, noised.masked[order])

    padded = torch.cat([tokens, torch.full((5, 4), 0)], 1)
    mask = (torch.arange(11) < 7).expand(5, 11)
    for padding in (dict(attention_mask=mask), dict(attention_mask=mask.long()), dict(pad=0)):
        t_padded, wide = draw(padded, mask, **padding)
        assert torch.equal(t_padded, t) and torch.equal(wide.masked[:, :7], noised.masked)


def test_trained_padding_keeps_the_sample_and_is_masked_itself():
    """Padded EOS that carries labels: the real tokens keep their masks whatever the width, the padding has its own."""
    tokens = texts(40, 6)
    narrow = torch.cat([tokens, torch.full((40, 2), 0)], 1)
    wide = torch.cat([tokens, torch.full((40, 9), 0)], 1)
    _, a = draw(narrow, pad=0)
    _, b = draw(wide, pad=0)
    assert torch.equal(a.masked, b.masked[:, :8]) and b.masked[:, 8:].any() and not b.masked[:, 8:].all()


def test_seed_epoch_and_tokens_change_the_draw():
    tokens = texts(200, 8)
    t, noised = draw(tokens)
    changed = tokens.clone()
    changed[:, -1] += 1
    for t_other, other in (draw(tokens, seed=2), draw(tokens, epoch=1), draw(changed)):
        assert (t_other != t).float().mean() > 0.99
        both = torch.corrcoef(torch.stack([noised.masked.flatten(), other.masked.flatten()]).double())
        assert both[0, 1].abs() < 0.1
    assert torch.equal(draw(tokens, seed=-1)[0], draw(tokens, seed=2**64 - 1)[0])


def test_antithetic_times_fill_the_strata():
    t, _ = draw(texts(16, 4), low=0.2, high=0.6, antithetic=True)
    assert torch.equal(((t - 0.2) / 0.4 * 16).floor().long(), torch.arange(16))
    t_again, _ = draw(texts(16, 4), low=0.2, high=0.6, antithetic=True)
    assert torch.equal(t, t_again)


def test_masks_do_not_depend_on_how_the_time_was_drawn():
    """The uniform that decides over a token is its own: of two times the later masks a superset."""
    tokens = texts(100, 8)
    _, early = draw(tokens, low=0.3, high=0.3001)
    _, late = draw(tokens, low=0.7, high=0.7001)
    assert not (early.masked & ~late.masked).any() and (late.masked & ~early.masked).any()


def test_lengths():
    rows = torch.tensor([[5, 6, 0, 0], [5, 0, 6, 0], [0, 0, 0, 0], [5, 6, 7, 8]])
    assert real_lengths(rows, None, 0).tolist() == [2, 3, 0, 4]
    assert real_lengths(rows, None, None).tolist() == [4, 4, 4, 4]
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    assert real_lengths(rows, mask, 0).tolist() == [2, 3, 0, 2]
    assert real_lengths(rows, mask, None).tolist() == [3, 4, 1, 2]
    assert real_lengths(torch.zeros(2, 0, dtype=torch.int64), None, 0).tolist() == [0, 0]


def test_a_time_per_token():
    """As block diffusion needs it: [B, L]."""
    tokens = texts(30, 6)
    seeds = sample_seeds(tokens, torch.full((30,), 6), 0)
    times = torch.where(torch.arange(6) < 3, 0.0, 1.0).expand(30, 6)
    noised = corrupt(
        tokens,
        torch.ones_like(tokens, dtype=torch.bool),
        times,
        seeds=seeds,
        epoch=0,
        scheduler=LinearAlphaScheduler(),
        mask_id=MASK,
    )
    assert not noised.masked[:, :3].any() and noised.masked[:, 3:].all()
