"""Experts in 8 bits: both implementations against the formula in float64, and what a token's bits depend on."""

import pytest
import torch

from dllm_kernels import _impl, swiglu_experts
from dllm_kernels.int8 import quantize_rows
from dllm_kernels.swiglu_experts.reference import swiglu_experts as reference
from dllm_kernels.testing import poisoned_memory
from tests.kernels.test_swiglu_experts import DTYPES, SHAPES, make, threads  # noqa: F401

cpu_kernel = pytest.mark.skipif(_impl.why_not_cpu() is not None, reason=f"no extension: {_impl.why_not_cpu()}")
BOTH = pytest.mark.parametrize("impl", ["reference", pytest.param("cpu", marks=cpu_kernel)])


def small(weight):
    """Matrices of experts [E, rows, columns] in 8 bits, and the scales of their rows [E, rows]."""
    q, scale = quantize_rows(weight.flatten(0, 1))
    return q.view(weight.shape), scale.view(weight.shape[:2])


def quantised(*shape, dtype=torch.float32):
    """The arguments of a call in 8 bits: positional ones, and the scales by name."""
    hidden, gate_up, down, index, weights = make(*shape, dtype)
    (gate_up, up_scale), (down, down_scale) = small(gate_up), small(down)
    return [hidden, gate_up, down, index, weights], dict(gate_up_scale=up_scale, down_scale=down_scale)


def rounded(x):
    """A row as it is after it has been quantised, in float64."""
    q, scale = quantize_rows(x.float()[None])
    return (q.double() * scale.double()[:, None])[0]


def formula(hidden, gate_up, down, index, weights, gate_up_scale, down_scale):
    """In float64, pair by pair; only what quantising rounds is rounded. And the sum of the sizes of what is added."""
    out, sizes = torch.zeros(2, *hidden.shape, dtype=torch.float64)
    gate_up, down = gate_up * gate_up_scale.double()[..., None], down * down_scale.double()[..., None]
    for t, h in enumerate(hidden):
        for e, w in zip(index[t].tolist(), weights[t].double().tolist(), strict=True):
            gate, up = (gate_up[e] @ rounded(h)).chunk(2)
            result = w * (down[e] @ rounded(gate * gate.sigmoid() * up))
            out[t] += result
            sizes[t] += result.abs()
    return out, sizes


@BOTH
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_formula(impl, shape, dtype):
    """But for results that are rounded to the dtype before and after they are added up, and what is float32 between."""
    given, scales = quantised(*shape, dtype=dtype)
    with poisoned_memory():
        got = swiglu_experts(*given, **scales, impl=impl)
    want, sizes = formula(*given, **scales)
    assert got.dtype == dtype and got.shape == want.shape
    eps = 0 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert ((got.double() - want).abs() <= eps * sizes + 2**-20 * sizes.amax(1, keepdim=True)).all()


@BOTH
def test_it_approximates_experts_in_full(impl):
    """Every rounding to 8 bits is uniform and independent: it adds s^2 / 12 to the square of a number's error, and a
    product carries errors on by the squares of what it multiplies with."""
    hidden, gate_up, down, _, _ = make(96, 256, 1, 128, 1)
    index, weights = torch.zeros(96, 1, dtype=torch.int64), torch.ones(96, 1)
    (up_q, up_scale), (down_q, down_scale) = small(gate_up), small(down)
    got = swiglu_experts(hidden, up_q, down_q, index, weights, gate_up_scale=up_scale, down_scale=down_scale, impl=impl)
    error = got - reference(hidden, gate_up, down, index, weights)

    def noise(x):
        return quantize_rows(x)[1].square()[:, None] / 12

    both, squares = hidden @ gate_up[0].t(), hidden.square().sum(1, keepdim=True)
    of_both = noise(hidden) * gate_up[0].square().sum(1) + squares * noise(gate_up[0]).t()
    (gate, up), (of_gate, of_up) = both.chunk(2, 1), of_both.chunk(2, 1)
    slope = gate.sigmoid() * (1 + gate * (1 - gate.sigmoid()))
    inner = torch.nn.functional.silu(gate) * up
    of_inner = (slope * up).square() * of_gate + torch.nn.functional.silu(gate).square() * of_up
    of_down = inner.square().sum(1, keepdim=True) * noise(down[0]).t()
    variance = (of_inner + noise(inner)) @ down[0].square().t() + of_down
    assert 0.9 < (error.square() / variance).mean().item() < 1.1
    assert 0.01 < (error.std() / got.std()).item() < 0.03  # what the docstring says


@cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_does_not_depend_on_its_batch(dtype, threads):  # noqa: F811
    """Experts with 1 to 300 tokens, also of several stripes of columns, and with none."""
    (hidden, gate_up, down, index, weights), scales = quantised(300, 70, 6, 530, 2, dtype=dtype)
    index[:] = torch.tensor([0, 1])
    index[:40, 0], index[40:47, 0], index[50, 1] = 2, 3, 4
    whole = swiglu_experts(hidden, gate_up, down, index, weights, **scales, impl="cpu")
    for number in (1, 3, 8):  # 8: more than there are experts, whose weights threads share then
        threads(number)
        assert torch.equal(swiglu_experts(hidden, gate_up, down, index, weights, **scales, impl="cpu"), whole)
    sizes = [slice(at, at + n) for at, n in ((0, 1), (7, 4), (38, 8), (44, 15), (40, 16), (30, 31), (50, 32), (99, 65))]
    for rows in (*sizes, slice(299, 300)):
        some = swiglu_experts(hidden[rows], gate_up, down, index[rows], weights[rows], **scales, impl="cpu")
        assert torch.equal(some, whole[rows])


@BOTH
def test_views_and_an_expert_named_twice(impl):
    (hidden, gate_up, down, index, weights), scales = quantised(20, 24, 4, 9, 2)
    index[3] = index[3, 0]
    want = swiglu_experts(hidden, gate_up, down, index, weights, **scales, impl=impl)
    wide, turned = torch.cat([hidden, hidden], 1)[:, :24], down.transpose(1, 2).contiguous().transpose(1, 2)
    apart = {name: scale.t().contiguous().t() for name, scale in scales.items()}
    assert torch.equal(swiglu_experts(wide, gate_up, turned, index, weights, **apart, impl=impl), want)
    torch.testing.assert_close(want, formula(hidden, gate_up, down, index, weights, **scales)[0].float())


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_are_no_numbers_stay_in_their_token(impl, dtype):
    (hidden, gate_up, down, index, weights), scales = quantised(40, 24, 4, 40, 2, dtype=dtype)
    hidden[3, 0], hidden[5, 23], hidden[8, 7], hidden[9] = torch.nan, torch.inf, -torch.inf, 0
    got = swiglu_experts(hidden, gate_up, down, index, weights, **scales, impl=impl)
    assert got[[3, 5, 8]].isnan().all() and got.isnan().sum() == 3 * 24
    assert (got[9] == 0).all()


@BOTH
def test_silu_of_large_numbers(impl):
    """silu is 0 or the gate itself, though e^-x overflows; what overflows afterwards is NaN in its token."""
    one, index, weights = torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1)
    gate_up, down = torch.tensor([[[127], [-127], [127], [127]]], dtype=torch.int8), torch.full((1, 1, 2), 127).char()
    for size, want in ((100.0, 1e4), (1e5, 1e10), (1e30, torch.nan)):
        scales = dict(gate_up_scale=torch.full((1, 4), size / 127), down_scale=torch.full((1, 1), 1 / 127))
        got = swiglu_experts(one, gate_up, down, index, weights, **scales, impl=impl)
        torch.testing.assert_close(got, torch.full((2, 1), want), rtol=1e-5, atol=0, equal_nan=True)


@BOTH
@pytest.mark.parametrize(("tokens", "chosen"), [(0, 2), (3, 0)])
def test_nothing_is_chosen(impl, tokens, chosen):
    given, scales = quantised(tokens, 8, 4, 5, chosen)
    assert torch.equal(swiglu_experts(*given, **scales, impl=impl), torch.zeros(tokens, 8))


def test_bad_input():
    (hidden, *both, index, weights), scales = quantised(5, 8, 4, 6, 2)
    gate_up, down = both
    up_scale, down_scale = scales.values()
    for weight, changed, kind, message in (
        (both, {}, ValueError, "weights of int8 need gate_up_scale and down_scale"),
        (both, dict(gate_up_scale=up_scale), TypeError, "down_scale must be a tensor, got NoneType"),
        (both, dict(down_scale=down_scale), TypeError, "gate_up_scale must be a tensor, got NoneType"),
        (both, dict(scales, gate_up_scale=up_scale[:, :6]), ValueError, r"gate_up_scale must have shape \[4, 12\]"),
        (both, dict(scales, down_scale=down_scale.double()), TypeError, "down_scale must be float32, got float64"),
        ((gate_up.float(), down), scales, TypeError, "gate_up must be int8, got float32"),
        ((gate_up, down.float()), scales, TypeError, "down must be int8, got float32"),
        ((gate_up, down[..., :5]), scales, ValueError, r"gate_up must have shape \[4, 10, 8\]"),
    ):
        with pytest.raises(kind, match=message):
            swiglu_experts(hidden, *weight, index, weights, **changed)
    wide = torch.zeros(1, 2**17 + 1)
    with pytest.raises(ValueError, match="at most 131072 beside int8, got 131073 and 1"):
        swiglu_experts(
            *(wide, wide.char().expand(1, 2, -1), wide.char().t()[None], torch.zeros(1, 1, dtype=torch.int64)),
            *(torch.ones(1, 1),),
            gate_up_scale=torch.ones(1, 2),
            down_scale=torch.ones(1, 2**17 + 1),
        )
