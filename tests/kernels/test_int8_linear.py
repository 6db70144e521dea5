"""Linear layers and heads in 8 bits: the reference against its formula, and every implementation bit for bit."""

import math

import pytest
import torch

from dllm_kernels import _impl, gumbel_argmax, int8_linear, linear_gumbel_argmax
from dllm_kernels.int8 import quantize_rows
from dllm_kernels.int8_linear.reference import logits as logits_of
from dllm_kernels.testing import make_head, make_noise, poisoned_memory

cpu_kernel = pytest.mark.skipif(_impl.why_not_cpu() is not None, reason=f"no extension: {_impl.why_not_cpu()}")
BOTH = pytest.mark.parametrize("impl", ["reference", pytest.param("cpu", marks=cpu_kernel)])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = math.inf, math.nan
# rows: around vectors and blocks of four; outputs: around 48 and 512; widths that are no multiple of four
SHAPES = [(1, 8, 1), (2, 1, 7), (4, 35, 500), (9, 40, 390), (17, 33, 130), (33, 64, 1030), (65, 10, 51), (150, 5, 400)]


def make(rows, width, outputs, dtype=torch.float32, bias=True):
    """Hidden states, and a head in 8 bits."""
    hidden, weight, offsets = make_head(rows, width, outputs, dtype=dtype, scale=1.0)
    return hidden, *quantize_rows(weight), offsets.float() if bias else None


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_rows_are_rounded_to_the_nearest_multiple_of_their_scale():
    x = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 7)[:, None]
    q, scale = quantize_rows(x)
    assert torch.equal(q.abs().amax(1), torch.full((7,), 127, dtype=torch.int8))
    error = (x.double() - q.double() * scale.double()[:, None]).abs()
    assert (error <= scale.double()[:, None] * (0.5 + 127 * 2**-23)).all()


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-39, 3e38])
def test_rows_of_extreme_numbers(value):
    q, scale = quantize_rows(torch.full((1, 3), value))
    assert 0 < float(scale) < INF
    assert q.tolist() == [[127 if value > 1e-30 else 0] * 3]


def test_reference_is_the_formula():
    hidden, weight, scale, bias = make(5, 9, 6)
    got = int8_linear(hidden, weight, scale, bias, impl="reference")
    for r, row in enumerate(hidden.tolist()):
        s = max(map(abs, row)) / 127
        for v in range(6):
            dot = sum(round(h / s) * w for h, w in zip(row, weight[v].tolist(), strict=True))
            assert got[r, v].item() == pytest.approx(dot * s * scale[v].item() + bias[v].item(), rel=1e-5, abs=1e-6)


@BOTH
def test_it_approximates_the_product_in_full(impl):
    """Both roundings are uniform and independent: each adds about H (s q / sqrt 12)^2 to the square of the error."""
    hidden, weight, _ = make_head(64, 256, 512, scale=1.0)
    (w, scale), (_, row_scale) = quantize_rows(weight), quantize_rows(hidden)
    error = int8_linear(hidden, w, scale, impl=impl) - hidden @ weight.t()
    of_rows = row_scale[:, None] ** 2 / 12 * weight.square().sum(1)
    of_weight = scale**2 / 12 * hidden.square().sum(1)[:, None]
    assert 0.9 < (error.square() / (of_rows + of_weight)).mean().item() < 1.1


@cpu_kernel
@pytest.mark.parametrize(("rows", "width", "outputs"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cpu_has_the_bits_of_the_reference(threads, rows, width, outputs, dtype):
    given = make(rows, width, outputs, dtype, bias=outputs % 2 == 0)
    expected = int8_linear(*given, impl="reference")
    for n in (1, 2, 3):
        threads(n)
        with poisoned_memory():
            assert torch.equal(int8_linear(*given, impl="cpu"), expected)


@BOTH
def test_any_leading_dimensions_and_strides(impl):
    hidden, weight, scale, bias = make(24, 16, 50)
    expected = int8_linear(hidden, weight, scale, bias, impl=impl)
    assert torch.equal(int8_linear(hidden.view(2, 3, 4, 16), weight, scale, bias, impl=impl).flatten(0, 2), expected)
    turned = hidden.t().contiguous().t(), weight.t().contiguous().t()
    assert torch.equal(int8_linear(*turned, scale, bias, impl=impl), expected)
    assert torch.equal(int8_linear(hidden[5], weight, scale, bias, impl=impl), expected[5])
    assert int8_linear(hidden[:0], weight, scale, bias, impl=impl).shape == (0, 50)


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_with_values_that_are_no_numbers_are_nan(impl, dtype):
    hidden, weight, scale, bias = make(40, 20, 60, dtype)
    hidden[3, 0], hidden[5, 19], hidden[8, 7], hidden[9] = NAN, INF, -INF, 0
    got = int8_linear(hidden, weight, scale, bias, impl=impl)
    assert got[[3, 5, 8]].isnan().all() and got.isnan().sum() == 3 * 60
    assert torch.equal(got[9], bias.to(dtype))


def test_bad_input():
    hidden, weight, scale, bias = make(4, 8, 6)
    for arguments, kind, message in (
        ((hidden, weight.float(), scale), TypeError, "weight must be int8, got float32"),
        ((hidden, weight[:, :7], scale), ValueError, r"weight must have shape \[V, 8\]"),
        ((hidden, weight, scale[:5]), ValueError, r"scale must have shape \[6\], got \[5\]"),
        ((hidden, weight, scale.double()), TypeError, "scale must be float32"),
        ((hidden, weight, scale, bias.half()), TypeError, "bias must be float32"),
        ((hidden.double(), weight, scale), TypeError, "hidden must be float32 or bfloat16 or float16"),
        ((hidden[:, :0], weight[:, :0], scale), ValueError, "from 1 to 131072 columns, got 0"),
        ((3, weight, scale), TypeError, "hidden must be a tensor"),
    ):
        with pytest.raises(kind, match=message):
            int8_linear(*arguments)
    with pytest.raises(RuntimeError, match="no gradient"):
        int8_linear(hidden.requires_grad_(), weight, scale)


# the head


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_head_draws_from_its_logits(threads, impl, dtype, temperature):
    """Of several stripes; logits stay float32 whatever the dtype."""
    threads(2)
    hidden, weight, scale, bias = make(33, 40, 1301, dtype)
    noise = make_noise(33, temperature)
    got = linear_gumbel_argmax(hidden, weight, bias, weight_scale=scale, **noise, impl=impl)
    expected = gumbel_argmax(logits_of(hidden, weight, scale, bias), **noise, impl="reference")
    assert torch.equal(got.token, expected.token)
    for ours, theirs in zip(got[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@BOTH
@pytest.mark.parametrize("cut", [{}, dict(top_k=5), dict(top_p=0.8)])
def test_a_row_of_the_head_does_not_depend_on_its_batch(impl, cut):
    hidden, weight, scale, bias = make(70, 24, 700, torch.bfloat16)
    noise = make_noise(70, torch.ones(70))
    whole = linear_gumbel_argmax(hidden, weight, bias, weight_scale=scale, **noise, **cut, impl=impl)
    for rows in (slice(0, 1), slice(3, 8), slice(69, 70)):
        some = {name: x[rows] for name, x in noise.items()}
        got = linear_gumbel_argmax(hidden[rows], weight, bias, weight_scale=scale, **some, **cut, impl=impl)
        assert same_bits(got, [field[rows] for field in whole])


@BOTH
def test_guidance_and_rows_are_chosen_before_they_are_quantised(impl):
    (hidden, weight, scale, bias), blind = make(16, 32, 300), make_head(16, 32, 1, seed=1, scale=1.0)[0]
    rows, head = torch.tensor([3, 16, 0, -1, 3]), dict(weight=weight, bias=bias, weight_scale=scale, impl=impl)
    got = linear_gumbel_argmax(hidden, unconditional=blind, cfg_scale=1.5, rows=rows, **head)
    guided = linear_gumbel_argmax(torch.lerp(blind, hidden, 2.5), **head)
    assert torch.equal(got.token[[0, 2, 4]], guided.token[[3, 0, 3]]) and got.token[[1, 3]].tolist() == [-1, -1]


@BOTH
def test_a_row_of_the_head_that_is_no_number_has_nothing_to_choose(impl):
    hidden, weight, scale, bias = make(16, 8, 90)
    hidden[2, 1], hidden[4, 0] = NAN, INF
    got = linear_gumbel_argmax(hidden, weight, bias, weight_scale=scale, **make_noise(16, 1.0), impl=impl)
    assert (got.token < 0).nonzero().flatten().tolist() == [2, 4]


def test_bad_heads():
    hidden, weight, scale, bias = make(4, 8, 6)
    with pytest.raises(ValueError, match="a weight of int8 needs weight_scale"):
        linear_gumbel_argmax(hidden, weight)
    with pytest.raises(TypeError, match="weight must be int8, got float32"):
        linear_gumbel_argmax(hidden, weight.float(), weight_scale=scale)
    with pytest.raises(ValueError, match=r"weight_scale must have shape \[6\]"):
        linear_gumbel_argmax(hidden, weight, weight_scale=scale[:2])
    with pytest.raises(TypeError, match="weight_scale must be float32"):
        linear_gumbel_argmax(hidden, weight, weight_scale=scale.half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = linear_gumbel_argmax(hidden, weight, bias, weight_scale=scale)
    assert same_bits(got, linear_gumbel_argmax(hidden, weight, bias, weight_scale=scale))
