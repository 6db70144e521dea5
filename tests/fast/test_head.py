"""The head's product on chosen rows: as exact as the model's own, and a row's bits do not depend on its company."""

import pytest
import torch
import torch.nn.functional as F

from dllm.fast.denoise import ROW_MULTIPLE
from dllm_kernels import _linear


def operands(rows, hidden, vocab, dtype, device, bias=True):
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, hidden), (vocab, hidden), (vocab,)]
    x, weight, b = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return x, weight, b if bias else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", [32, 384, 768])
def test_a_row_does_not_depend_on_how_many_there_are(hidden, dtype, device):
    """Every number of rows that the loop may ask for, alone and at another place of the list."""
    x, weight, bias = operands(128, hidden, 5003, dtype, device)
    step = ROW_MULTIPLE[device.type]
    full = _linear.linear(x, weight, bias)
    for rows in range(step, 129, step):
        assert torch.equal(_linear.linear(x[:rows], weight, bias), full[:rows])
        assert torch.equal(_linear.linear(x[128 - rows :], weight, bias), full[128 - rows :])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_float64(dtype, bias, device):
    """A sum of H products in another order: both errors stay below the bound of any order, H eps sum |x| |w|."""
    x, weight, b = operands(64, 384, 3001, dtype, device, bias)
    x64, weight64, b64 = (t if t is None else t.double() for t in (x, weight, b))
    truth = F.linear(x64, weight64, b64)
    bound = F.linear(x64.abs(), weight64.abs(), b64 if b is None else b64.abs()) * 384 * torch.finfo(torch.float32).eps
    rounding = truth.abs() * torch.finfo(dtype).eps
    for product in (_linear.linear, F.linear):
        assert bool(((product(x, weight, b).double() - truth).abs() <= bound + rounding).all())


def test_what_onednn_must_not_serve(monkeypatch):
    x, weight, _ = operands(4, 8, 16, torch.float32, "cpu")
    assert not _linear.by_onednn(x.bfloat16(), weight.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not _linear.by_onednn(x, weight)
        assert _linear.linear(x, weight, None).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert not _linear.by_onednn(x, weight)
    monkeypatch.setattr(_linear, "_SCHEMA", "_linear_pointwise(Tensor X, Tensor W) -> Tensor Y")
    _linear._has_product.cache_clear()
    try:
        assert not _linear.by_onednn(x, weight)
    finally:
        _linear._has_product.cache_clear()
    monkeypatch.setattr(_linear.platform, "machine", lambda: "arm64")
    assert not _linear.by_onednn(x, weight)
