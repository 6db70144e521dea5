"""Noise of positions: the bits of the specification in every implementation, and the laws that it claims."""

import importlib.util

import pytest
import torch

from dllm_kernels import _impl, philox, position_noise
from tests.goodness_of_fit import P_MIN, chi_square_p

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FAST = [
    pytest.param("cpu", marks=pytest.mark.skipif(bool(_impl.why_not_cpu()), reason=str(_impl.why_not_cpu()))),
    pytest.param(
        "triton",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("triton") is None or not (torch.cuda.is_available() or _impl.interpreting()),
            reason="no triton",
        ),
    ),
]


def addresses(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randint(-(2**63), 2**63 - 1, (n,), generator=generator)
    return wide, torch.randint(0, 2**33, (n,), generator=generator), torch.randint(0, 999, (n,), generator=generator)


@pytest.mark.parametrize("law", ["uniform", "gumbel"])
@pytest.mark.parametrize("n", [0, 1, 127, 300])
@pytest.mark.parametrize("impl", FAST)
def test_same_bits_as_the_specification(impl, n, law):
    at = addresses(n)
    want = position_noise(*at, law=law, impl="reference")
    place = DEVICE if impl == "triton" else torch.device("cpu")
    got = position_noise(*(x.to(place) for x in at), law=law, impl=impl).cpu()
    assert torch.equal(got.view(torch.int32), want.view(torch.int32)) and got.shape == (n,)


@pytest.mark.parametrize("impl", FAST)
def test_one_step_and_one_position_for_all(impl):
    seeds = addresses(9)[0].to(DEVICE if impl == "triton" else "cpu")
    one = torch.tensor([4], device=seeds.device)
    assert torch.equal(position_noise(seeds, 4, 7, impl=impl), position_noise(seeds, one, one + 3, impl=impl))


def test_uniform_is_the_stream_of_random_confidences():
    seeds, positions, step = addresses(50)
    want = philox.uniform(seeds, positions, step, philox.RANDOM_CONFIDENCE)
    assert torch.equal(position_noise(seeds, positions, step), want)


def test_gumbel_orders_as_draws_without_replacement():
    """The first of the order has the law softmax(c)."""
    c, n = torch.tensor([1.0, 0.0, -1.0, 0.5]), 20_000
    seeds = torch.arange(n).repeat_interleave(4)
    g = position_noise(seeds, torch.arange(4).repeat(n), 0, law="gumbel").view(n, 4)
    assert chi_square_p(torch.bincount((c + g).argmax(1), minlength=4), c.double().softmax(0)) > P_MIN


def test_bad_arguments():
    seeds = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="law must be one of uniform, gumbel, got 'normal'"):
        position_noise(seeds, 0, 0, law="normal")
    with pytest.raises(TypeError, match="seeds"):
        position_noise(seeds.float(), 0, 0)
    with pytest.raises(ValueError, match=r"positions must have one element or shape \[3\], got \[2\]"):
        position_noise(seeds, seeds[:2], 0)
