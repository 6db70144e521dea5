"""The head's product on chosen rows: as exact as the model's own, and a row's bits do not depend on its company."""

import pytest
import torch
import torch.nn.functional as F

from dllm_kernels import _linear


def operands(rows, hidden, vocab, dtype, device, bias=True):
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, hidden), (vocab, hidden), (vocab,)]
    x, weight, b = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return x, weight, b if bias else None


# vocabularies within a stripe of the kernel, of one token more, of several with a rest; widths around a pair, a lane, a
# matrix tile, and at which libraries split their sums
SIZES = [(1, 40), (33, 385), (384, 1000), (768, 1003)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=[1, 2], ids="threads={}".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def assert_same_bits(product, x, counts):
    """Rows at the beginning and at the end of x, and in between, as many as counts say."""
    full = product(x)
    for rows in counts:
        for begin in {0, len(x) - rows, (len(x) - rows) // 3}:
            assert torch.equal(product(x[begin : begin + rows]), full[begin : begin + rows]), (rows, begin)


def on_cpu(product):
    """Strides that rows, columns and a transposed weight can have, and both products that a CPU may take."""
    spread = torch.zeros(400, 1000, dtype=product[0].dtype)
    x, weight, bias = product
    wide = spread[: 2 * len(x) : 2, 3 : 3 + x.shape[1]].copy_(x)
    turned = weight.t().contiguous().t()
    return {
        "rows apart": (wide, lambda rows: _linear.linear(rows, weight, bias)),
        "weight by columns": (x, lambda rows: _linear.linear(rows, turned, bias)),
        "a library": (x, lambda rows: _linear.by_blocks(lambda block: F.linear(block, weight, bias), rows)),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("hidden", "vocab"), SIZES)
def test_a_row_does_not_depend_on_how_many_there_are(threads, hidden, vocab, dtype, device):
    """Alone, around every vector, block and two of them, and wherever it stands."""
    x, weight, bias = operands(200, hidden, vocab, dtype, device)
    step = 64 if device.type == "cuda" else 1
    counts = range(64, 200, 64) if step > 1 else (1, 2, 3, 5, 8, 9, 15, 16, 17, 33, 48, 63, 64, 65, 127, 129, 199)
    assert_same_bits(lambda rows: _linear.linear(rows, weight, bias), x, counts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_a_library(threads, dtype):
    x, weight, bias = operands(200, 384, 500, dtype, "cpu")
    expected = _linear.linear(x, weight, bias)
    for name, (rows, product) in on_cpu((x, weight, bias)).items():
        assert_same_bits(product, rows, (1, 16, 63, 64, 65, 130))
        assert name == "a library" or torch.equal(product(rows), expected)
    assert torch.equal(_linear.linear(x, weight, None), _linear.linear(x, weight, torch.zeros_like(bias)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("hidden", "vocab"), SIZES)
def test_every_number_of_rows(threads, hidden, vocab, dtype):
    x, weight, bias = operands(200, hidden, vocab, dtype, "cpu")
    assert_same_bits(lambda rows: _linear.linear(rows, weight, bias), x, range(1, 201))
    by_library = lambda rows: _linear.by_blocks(lambda block: F.linear(block, weight, bias), rows)  # noqa: E731
    assert_same_bits(by_library, x, range(1, 201))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_float64(dtype, bias, device):
    """A sum of H products in another order: both errors stay below the bound of any order, H eps sum |x| |w|."""
    x, weight, b = operands(64, 384, 3001, dtype, device, bias)
    x64, weight64, b64 = (t if t is None else t.double() for t in (x, weight, b))
    truth = F.linear(x64, weight64, b64)
    bound = F.linear(x64.abs(), weight64.abs(), b64 if b is None else b64.abs()) * 384 * torch.finfo(torch.float32).eps
    rounding = truth.abs() * torch.finfo(dtype).eps
    transposed = weight.t().contiguous().t()  # as a gradient's product has it
    for product, w in ((_linear.linear, weight), (_linear.by_library, weight), (_linear.by_library, transposed)):
        assert bool(((product(x, w, b).double() - truth).abs() <= bound + rounding).all())


def test_autocast_and_other_dtypes():
    x, weight, bias = operands(4, 8, 16, torch.float32, "cpu")
    halves = [t.bfloat16() for t in (x, weight, bias)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(_linear.linear(x, weight, bias), _linear.linear(*halves))
    doubles = [t.double() for t in (x, weight, bias)]
    torch.testing.assert_close(_linear.linear(*doubles), F.linear(*doubles), rtol=1e-14, atol=1e-14)
    assert not _linear.linear(x.requires_grad_(), weight, None).requires_grad
    assert _linear.linear(x[:0], weight, bias).shape == (0, 16)
    assert _linear.by_blocks(lambda rows: F.linear(rows, weight), x[:0]).shape == (0, 16)


def test_what_onednn_must_not_serve(monkeypatch):
    x, weight, _ = operands(4, 8, 16, torch.float32, "cpu")
    assert _linear.by_onednn(x, weight) == _linear.by_onednn(x, weight.t().contiguous().t())
    assert not _linear.by_onednn(x[:, ::2], weight[:, ::2])
    assert not _linear.by_onednn(x.bfloat16(), weight.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not _linear.by_onednn(x, weight)
        assert _linear.by_library(x, weight, None).dtype == torch.bfloat16
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert not _linear.by_onednn(x, weight)
    monkeypatch.setattr(_linear, "_SCHEMA", "_linear_pointwise(Tensor X, Tensor W) -> Tensor Y")
    _linear._has_product.cache_clear()
    try:
        assert not _linear.by_onednn(x, weight)
    finally:
        _linear._has_product.cache_clear()
    monkeypatch.setattr(_linear.platform, "machine", lambda: "arm64")
    assert not _linear.by_onednn(x, weight)
