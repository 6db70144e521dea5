"""Dropout: C++ against the specification, the law of the mask, gradients, and torch's dropout in its place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from dllm.fast.training.dropout import fast_dropout
from dllm_kernels import _impl, dropout
from dllm_kernels.dropout.api import STEPS

CPU = torch.device("cpu")
needs_cpu = pytest.mark.skipif(bool(_impl.why_not_cpu()), reason=str(_impl.why_not_cpu()))
SEED = torch.tensor(2**62 - 12345)


# around the width of a vector, of a tile (256) and of several threads' shares
@needs_cpu
@pytest.mark.parametrize("size", [0, 1, 31, 255, 256, 257, 40_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cpu_equals_the_reference(size, dtype):
    x = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    for p in (0.0, 0.1, 0.999):
        assert torch.equal(dropout(x, p, SEED, impl="cpu"), dropout(x, p, SEED, impl="reference"))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_law_of_the_mask(p):
    """The share of kept elements, of pairs of neighbours, and of elements that two seeds both keep."""
    n = 2**20
    kept, other = (dropout(torch.ones(n), p, seed) > 0 for seed in (SEED, SEED + 1))
    for share, expected in (
        (kept, 1 - p),
        (kept[1:] & kept[:-1], (1 - p) ** 2),
        (kept[32:] & kept[:-32], (1 - p) ** 2),  # the two halves of a word
        (kept & other, (1 - p) ** 2),
    ):
        deviation = 5 * (expected * (1 - expected) / n) ** 0.5
        assert abs(share.double().mean().item() - expected) < deviation + 1 / STEPS


def test_the_mean_is_exact():
    """p and the divisor are rounded alike."""
    y = dropout(torch.ones(1000), 0.1, SEED)
    assert y.unique().tolist() == [0.0, pytest.approx(STEPS / (STEPS - round(0.1 * STEPS)))]


def test_gradients():
    x = torch.randn(3, 100, dtype=torch.float32, requires_grad=True)
    y = dropout(x.T, 0.3, SEED)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=False)
    assert torch.equal(gradient.T, dropout(torch.ones(100, 3), 0.3, SEED))


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (dict(p=1.0), ValueError, "p must be at least 0 and below 1, got 1.0"),
        (dict(p=-0.1), ValueError, "p must be at least 0"),
        (dict(x=torch.ones(2, dtype=torch.float64)), TypeError, "x must be float32"),
        (dict(seed=7), TypeError, "seed must be a tensor"),
        (dict(seed=torch.tensor([7])), ValueError, "seed must have shape"),
        (dict(impl="triton"), ValueError, "does not exist for dropout"),
        (dict(x=torch.ones(2, device="meta")), ValueError, "x must be on the CPU"),
    ],
)
def test_wrong_arguments(wrong, error, message):
    given = dict(x=torch.ones(2), p=0.5, seed=SEED) | wrong
    with pytest.raises(error, match=message):
        dropout(given.pop("x"), given.pop("p"), given.pop("seed"), **given)


@needs_cpu
class TestInPlaceOfTorchs:
    def draw(self, module, context):
        torch.manual_seed(0)
        with context(CPU):
            x = torch.ones(512, requires_grad=True)
            y = module(x)
            again = module(x)
        y.sum().backward()
        return y.detach(), x.grad, again.detach()

    def test_in_training(self):
        y, gradient, again = self.draw(nn.Dropout(0.5), fast_dropout)
        assert torch.equal(gradient, y) and not torch.equal(y, again)
        assert torch.equal(y, self.draw(nn.Dropout(0.5), fast_dropout)[0])  # torch.manual_seed repeats it
        torch.manual_seed(0)
        assert not torch.equal(y, F.dropout(torch.ones(512), 0.5))  # and it is not torch's

    @pytest.mark.parametrize("mask", [None, "bool", "added"])
    def test_attention(self, mask, monkeypatch):
        """Without dropping anything it is torch's, also where a query sees nothing; then by our masks."""
        draw = torch.Generator().manual_seed(0)
        query, key, value = (torch.randn(2, 3, 7, 8, generator=draw).requires_grad_() for _ in range(3))
        seen = torch.rand(2, 1, 7, 7, generator=draw) < 0.5
        seen[0, 0, 2] = False
        given = {None: None, "bool": seen, "added": torch.randn(2, 1, 7, 7, generator=draw)}[mask]
        with fast_dropout(CPU):
            dropped = F.scaled_dot_product_attention(query, key, value, given, 0.5)
            monkeypatch.setattr("dllm.fast.training.dropout.dropout", lambda x, p, seed: x)
            whole = F.scaled_dot_product_attention(query, key, value, given, 0.5)
        expected = F.scaled_dot_product_attention(query, key, value, given)
        torch.testing.assert_close(whole, expected)
        assert not torch.equal(dropped, whole)
        gradients = [torch.autograd.grad(y.square().sum(), (query, key, value)) for y in (whole, expected)]
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_a_checkpoint_runs_the_same_again(self, reentrant):
        layer = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5), nn.Linear(64, 64))
        torch.manual_seed(0)
        x = torch.randn(8, 64, requires_grad=True)
        state, found = torch.get_rng_state(), []
        for call in (lambda: checkpoint(layer, x, use_reentrant=reentrant), lambda: layer(x)):
            torch.set_rng_state(state)
            with fast_dropout(CPU) if len(found) == 0 else fast_dropout(torch.device("meta")):
                y = call()
            found.append(torch.autograd.grad(y.sum(), x)[0] if not reentrant else _gradient(y, x))
        assert torch.equal(*found)

    @pytest.mark.parametrize(
        "module", [nn.Dropout(0.5).eval(), nn.Dropout(1.0), nn.Dropout(0.0), nn.Dropout(0.5, True)]
    )
    def test_what_stays_torchs(self, module):
        torch.manual_seed(0)
        with fast_dropout(CPU):
            y = module(torch.ones(64, requires_grad=True) * 1)
        torch.manual_seed(0)
        assert torch.equal(y, module(torch.ones(64) * 1))


def _gradient(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    x.grad = None
    y.sum().backward()
    return x.grad
