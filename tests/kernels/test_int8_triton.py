"""Layers and heads in 8 bits in Triton, bit for bit the reference: on a GPU, else in Triton's interpreter."""

import pytest
import torch

from dllm_kernels import _impl, int8_linear, linear_gumbel_argmax
from dllm_kernels.int8 import quantize_rows
from dllm_kernels.testing import make_noise, poisoned_memory
from tests.kernels.test_int8_linear import DTYPES, INF, NAN, make, same_bits
from tests.triton_device import DEVICE, NO_TRITON, here

if NO_TRITON:
    pytest.skip(NO_TRITON, allow_module_level=True)

from dllm_kernels import _tuning
from dllm_kernels.int8_linear import triton as kernels

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy remarks on inf and NaN


def on_device(*tensors):
    return [None if x is None else x.to(DEVICE) for x in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_quantised_as_specified(dtype):
    x = (torch.randn(6, 70, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    x[1, 3], x[2, 69], x[3], x[4] = NAN, -INF, 0, 2.0**-14
    q, scale = kernels.quantize_rows(x.to(DEVICE))
    expected, expected_scale = quantize_rows(x)
    assert torch.equal(q.cpu(), expected)
    assert torch.equal(scale.cpu().nan_to_num(-1), expected_scale.nan_to_num(-1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width", "outputs"), [(1, 64, 7), (20, 130, 150), (140, 64, 40)])
def test_a_layer_has_the_bits_of_the_reference(rows, width, outputs, dtype):
    if dtype == torch.bfloat16 and _impl.interpreting():
        pytest.skip("the interpreter cuts off bits where it converts to bfloat16")
    given = make(rows, width, outputs, dtype, bias=outputs != 40)
    with poisoned_memory():
        got = int8_linear(*on_device(*given), impl="triton").cpu()
    assert torch.equal(got, int8_linear(*given, impl="reference"))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_head_draws_the_tokens_of_the_reference(fused, temperature):
    hidden, weight, scale, bias = make(5, 40, 300, torch.bfloat16)
    hidden[2, 1] = NAN
    noise = make_noise(5, temperature)
    expected = linear_gumbel_argmax(hidden, weight, bias, weight_scale=scale, **noise, impl="reference")
    h, w, s, b = on_device(hidden, weight, scale, bias)
    with _tuning.using({"fused_rows": 32 if fused else 0}), poisoned_memory():
        got = linear_gumbel_argmax(h, w, b, weight_scale=s, **here(noise), impl="triton")
    assert torch.equal(got.token.cpu(), expected.token) and expected.token[2] == -1
    for ours, theirs in zip(got[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", [dict(top_k=5), dict(top_p=0.8)])
def test_a_head_with_filters(cut):
    hidden, weight, scale, bias = make(3, 24, 90)
    noise = make_noise(3, 1.0)
    expected = linear_gumbel_argmax(hidden, weight, bias, weight_scale=scale, **noise, **cut, impl="reference")
    h, w, s, b = on_device(hidden, weight, scale, bias)
    got = linear_gumbel_argmax(h, w, b, weight_scale=s, **here(noise), **cut, impl="triton")
    assert same_bits([got.token.cpu()], [expected.token])
