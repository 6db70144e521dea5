"""The softcap of logits, and the argmax beside the drawn token: the formula, the reference, and the C++ kernel."""

import math

import pytest
import torch

from dllm_kernels import _impl, gumbel_argmax, linear_gumbel_argmax
from dllm_kernels._linear import linear
from dllm_kernels.logits import softcapped, tanh_float32
from dllm_kernels.testing import STATISTICS, make_head, make_logits, make_noise

cpu_kernel = pytest.mark.skipif(_impl.why_not_cpu() is not None, reason=f"no extension: {_impl.why_not_cpu()}")
CPU = pytest.param("cpu", marks=cpu_kernel)
BOTH = pytest.mark.parametrize("impl", ["reference", CPU])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = math.inf, math.nan


def test_tanh_is_exact_to_three_ulp_odd_and_monotone():
    x = torch.cat([torch.logspace(-30, 1.2, 100_000), torch.linspace(0, 12, 400_000)]).sort().values
    got, truth = tanh_float32(x), x.double().tanh()
    ulp = torch.nextafter(truth.float(), torch.tensor(2.0)).double() - truth.float().double()
    assert ((got.double() - truth).abs() <= 3 * ulp).all()
    assert (got.diff() >= 0).all() and got[-1] == 1
    assert torch.equal(tanh_float32(-x), -got)
    ends = torch.tensor([0.0, INF, -INF])
    assert tanh_float32(ends).tolist() == [0.0, 1.0, -1.0] and tanh_float32(torch.tensor([NAN])).isnan()


def test_softcapped_is_the_formula():
    logits = make_logits(3, 500, scale=60.0)
    logits[0, 0], logits[0, 1], logits[0, 2] = NAN, INF, -INF
    got = softcapped(logits, 30.0)
    assert got[0, :3].tolist() == [-INF, 30.0, -INF]
    expected = [[30.0 * math.tanh(l / 30.0) for l in row[3:]] for row in logits.tolist()]
    torch.testing.assert_close(got[:, 3:], torch.tensor(expected), rtol=4e-7, atol=0)
    assert torch.equal(softcapped(logits[:, 3:], None), logits[:, 3:])


@cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [1, 15, 512, 3000, 20000])
@pytest.mark.parametrize("statistics", ["raw", "tempered"])
def test_the_kernel_draws_the_references_tokens(dtype, vocab_size, statistics):
    logits = make_logits(8, vocab_size, scale=40.0, dtype=dtype)
    logits[1, 0], logits[2, vocab_size // 2], logits[3] = NAN, INF, -INF
    noise = make_noise(8, torch.tensor([0.0, 0.4, 0.8, 1.0, 0.4, 0.6, 2.0, 0.01]))
    options = dict(**noise, softcap=30.0, statistics=statistics)
    got, expected = (gumbel_argmax(logits, **options, impl=impl) for impl in ("cpu", "reference"))
    assert torch.equal(got.token, expected.token) and torch.equal(got.argmax, expected.argmax)
    for name in STATISTICS:
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=1e-5, atol=1e-5)


@cpu_kernel
def test_a_softcap_is_that_of_capped_logits():
    """Bit for bit, with every option."""
    logits, noise = make_logits(6, 20000, scale=40.0), make_noise(6, torch.linspace(0, 1, 6))
    flags = dict(suppress=torch.arange(20000) % 3 == 0, begin_suppress=torch.arange(20000) % 5 == 0)
    for options in ({}, flags, dict(**flags, statistics="tempered"), dict(top_k=9), dict(top_p=0.5, **flags)):
        got = gumbel_argmax(logits, **noise, **options, softcap=7.0, impl="cpu")
        expected = gumbel_argmax(softcapped(logits, 7.0), **noise, **options, impl="cpu")
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@BOTH
def test_saturated_logits_tie_and_the_lowest_token_is_taken(impl):
    logits = torch.full((2, 40000), -100.0)
    logits[0, 17000], logits[0, 39999], logits[0, 17001] = 300.0, 500.0, 400.0
    logits[1, 39999] = 271.0
    got = gumbel_argmax(logits, softcap=30.0, impl=impl)
    assert got.token.tolist() == [17000, 39999] and torch.equal(got.argmax, got.token)
    assert gumbel_argmax(logits, impl=impl).argmax.tolist() == [39999, 39999]


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_argmax_is_the_token_of_temperature_zero(impl, dtype):
    """Also where many tokens tie, as in bfloat16, and of what is hidden or cut."""
    logits = make_logits(9, 40000, dtype=dtype)
    logits[0], logits[1] = 2.0, NAN
    logits[2, ::1000] = 100.0
    noise, flags = make_noise(9, 3.0), torch.arange(40000) % 2 == 0
    for options in ({}, dict(suppress=flags), dict(begin_suppress=flags), dict(top_k=3), dict(softcap=2.0)):
        got = gumbel_argmax(logits, **noise, **options, impl=impl)
        assert torch.equal(got.argmax, gumbel_argmax(logits, **options, impl=impl).token)
        assert got.argmax[1] == -1 and (got.argmax[2:] != got.token[2:]).any()
    assert got.argmax[0] == 0


@cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_heads_logits_are_rounded_before_the_softcap(dtype):
    head, noise = make_head(20, 40, 2000, scale=25.0, dtype=dtype), make_noise(20, torch.linspace(0, 1, 20))
    got = linear_gumbel_argmax(*head, **noise, softcap=30.0, impl="cpu")
    expected = gumbel_argmax(linear(*head), **noise, softcap=30.0, impl="cpu")
    assert torch.equal(got.token, expected.token) and torch.equal(got.argmax, expected.argmax)
    reference = linear_gumbel_argmax(*head, **noise, softcap=30.0, impl="reference")
    assert (got.token == reference.token).float().mean() > 0.9 and (got.argmax == reference.argmax).float().mean() > 0.9
    for name in STATISTICS:
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=1e-5, atol=1e-5)
    cut = dict(top_k=50, top_p=0.9, softcap=30.0)
    assert torch.equal(
        linear_gumbel_argmax(*head, **noise, **cut, impl="cpu").token,
        gumbel_argmax(linear(*head), **noise, **cut, impl="cpu").token,
    )


@pytest.mark.parametrize(
    ("softcap", "error", "message"),
    [
        (0.0, ValueError, "softcap must be above 0"),
        (-1.0, ValueError, "softcap must be finite and at least 0, got -1.0"),
        (NAN, ValueError, "softcap must be finite"),
        (INF, ValueError, "softcap must be finite"),
        (1e31, ValueError, "softcap must be at most 1e"),
        ("30", TypeError, "softcap must be a number, got str"),
        (True, TypeError, "softcap must be a number, got bool"),
    ],
)
def test_bad_softcap(softcap, error, message):
    hidden, weight, _ = make_head(2, 3, 8)
    with pytest.raises(error, match=message):
        gumbel_argmax(hidden, softcap=softcap)
    with pytest.raises(error, match=message):
        linear_gumbel_argmax(hidden, weight, softcap=softcap)
