"""Attention: the reference against PyTorch's, the kernel against float64, and what its bits depend on."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from dllm_kernels import _impl, attention, packed_attention
from dllm_kernels.testing import poisoned_memory

cpu_kernel = pytest.mark.skipif(_impl.why_not_cpu() is not None, reason=f"no extension: {_impl.why_not_cpu()}")
BOTH = pytest.mark.parametrize("impl", ["reference", pytest.param("cpu", marks=cpu_kernel)])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# batch, heads, heads of keys, queries, keys, width: around 8 keys, 16 and 32 queries, 2 and 4 vectors of a head
SHAPES = [
    (1, 1, 1, 1, 1, 32),
    (2, 4, 2, 37, 37, 64),
    (1, 3, 1, 33, 70, 96),
    (2, 2, 2, 16, 9, 128),
    (1, 2, 2, 65, 8, 32),
]


def make(batch, heads, shared, queries, keys, width, dtype=torch.float32, seed=0):
    """q, k and v as one projection puts them out, and a mask in which every query sees some key."""
    generator = torch.Generator().manual_seed(seed)
    random = lambda rows, n: torch.randn(batch, rows, n, width, generator=generator).to(dtype).transpose(1, 2)  # noqa: E731
    mask = torch.rand(batch, queries, keys, generator=generator) < 0.6
    mask[..., 0] = True
    return random(queries, heads), random(keys, shared), random(keys, shared), mask


def of_torch(query, key, value, mask, scale):
    shared = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(shared, 1) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value, None if mask is None else mask[:, None], scale=scale)


def check(got, query, key, value, mask):
    """Attention of scale 0.2 has the arguments' dtype, and is as near to float64 as PyTorch's."""
    assert got.dtype == query.dtype
    true = of_torch(*(x.double() for x in (query, key, value)), mask, 0.2)
    unit = torch.finfo(got.dtype).eps * value.abs().max().item()
    error, theirs = ((x.double() - true).abs().max().item() for x in (got, of_torch(query, key, value, mask, 0.2)))
    assert error <= 1.5 * theirs + unit


@BOTH
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_it_errs_no_more_than_pytorch(impl, shape, dtype, masked):
    query, key, value, mask = make(*shape, dtype)
    mask = mask if masked else None
    with poisoned_memory():
        got = attention(query, key, value, mask, scale=0.2, impl=impl)
    check(got, query, key, value, mask)


@cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_does_not_depend_on_its_batch(dtype):
    query, key, value, mask = make(3, 2, 2, 70, 45, 64, dtype)
    whole = attention(query, key, value, mask, scale=0.1, impl="cpu")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(attention(query, key, value, mask, scale=0.1, impl="cpu"), whole)
    finally:
        torch.set_num_threads(threads)
    for rows in (slice(0, 1), slice(5, 38), slice(69, 70)):
        some = attention(query[1:2, :, rows], key[1:2], value[1:2], mask[1:2, rows], scale=0.1, impl="cpu")
        assert torch.equal(some, whole[1:2, :, rows])


@BOTH
def test_masks_are_repeated_and_hidden_keys_cost_nothing_but_zeros(impl):
    query, key, value, _ = make(2, 1, 1, 40, 50, 32)
    window = (torch.arange(40)[:, None] - torch.arange(50)).abs() < 6
    windowed = attention(query, key, value, window[None], scale=1.0, impl=impl)
    assert torch.equal(windowed, attention(query, key, value, window.expand(2, 40, 50), scale=1.0, impl=impl))
    seen = torch.arange(50) < 20
    got = attention(query, key, value, seen.view(1, 1, 50), scale=1.0, impl=impl)
    torch.testing.assert_close(got, attention(query, key[:, :, :20], value[:, :, :20], scale=1.0, impl=impl))
    turned = seen.repeat(2, 40, 1).transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(attention(query, key, value, turned, scale=1.0, impl=impl), got)


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_are_no_numbers(impl, dtype):
    query, key, value, mask = make(1, 2, 2, 20, 12, 32, dtype)
    query[0, 0, 3, 5] = torch.nan
    query[0, 1, 18] = torch.finfo(dtype).max
    key[0, 1, 4, 0] = torch.inf
    mask[0, 7], mask[0, 18, 4] = False, True
    got = attention(query, key, value, mask, scale=1.0, impl=impl)
    assert got[0, 0, 3].isnan().all() and got[0, 1, 18].isnan().all()
    assert torch.equal(got[0, :, 7], torch.zeros(2, 32, dtype=dtype))
    assert got[0, 0].isnan().sum() == 32


def test_no_queries():
    query, key, value, _ = make(2, 1, 1, 4, 5, 32)
    assert attention(query[:, :, :0], key, value, scale=1.0).shape == (2, 1, 0, 32)


def test_bad_input():
    query, key, value, mask = make(2, 4, 2, 5, 6, 32)
    for arguments, kind, message in (
        ((query, key.half(), value), TypeError, "key must be float32, got float16"),
        ((query, key, value[:, :, :4]), ValueError, "value must have shape"),
        ((query[..., :20], key[..., :20], value[..., :20]), ValueError, "d must be a multiple of 32"),
        ((query, key[:, :, :0], value[:, :, :0]), ValueError, "S must be at least 1"),
        ((query[:, :3], key, value), ValueError, "heads must be a multiple of the heads of keys, got 3 and 2"),
        ((query, key, value, mask.float()), TypeError, "mask must be bool"),
        ((query, key, value, mask[:, :4]), ValueError, r"mask must have shape \[2, 5, 6\] or ones in it"),
    ):
        with pytest.raises(kind, match=message):
            attention(*arguments, scale=1.0)
    with pytest.raises(RuntimeError, match="no gradient"):
        attention(query.requires_grad_(), key, value, scale=1.0)
    with pytest.raises(ValueError, match="does not exist for attention"):
        attention(query.detach(), key, value, scale=1.0, impl="triton")


# packed rows

LENGTHS = (3, 0, 1, 37, 70, 33, 16)


def packed(heads=4, shared=2, width=64, dtype=torch.float32, lengths=LENGTHS):
    """q, k and v of rows of these lengths, and where they end."""
    query, key, value, _ = make(1, heads, shared, sum(lengths), sum(lengths), width, dtype)
    return query, key, value, torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def mask_of(ends, window):
    """The mask [1, T, T] that says the same as where rows end."""
    place = torch.arange(int(ends[-1]))
    row = torch.searchsorted(ends[1:].contiguous(), place, right=True)
    return ((row[:, None] == row) & ((place[:, None] - place).abs() < (window or len(place))))[None]


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads, shared, width", [(4, 2, 64), (2, 2, 32), (3, 1, 96)])
@pytest.mark.parametrize("window", [None, 1, 6, 40])  # 40: rows are shorter, and longer
def test_packed_rows_err_no_more_than_pytorch(impl, dtype, heads, shared, width, window):
    query, key, value, ends = packed(heads, shared, width, dtype)
    mask = mask_of(ends, window)
    with poisoned_memory():
        got = packed_attention(query, key, value, ends, scale=0.2, window=window, impl=impl)
    check(got, query, key, value, mask)


@cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 9])
def test_a_packed_row_does_not_depend_on_its_company(dtype, window):
    """Nor on threads, on where it lies, or on what lay in memory before it: its neighbours are NaN here."""
    query, key, value, ends = packed(dtype=dtype)
    threads = torch.get_num_threads()
    for begin, end in itertools.pairwise(ends.tolist()):
        row, near = [x[:, :, begin:end] for x in (query, key, value)], torch.arange(end - begin)
        alone = packed_attention(*row, torch.tensor([0, end - begin], dtype=torch.int32), scale=0.1, window=window)
        spoiled = [torch.full_like(x, torch.nan) for x in (query, key, value)]
        for x, own in zip(spoiled, row, strict=True):
            x[:, :, begin:end] = own
        for count in (1, 3):
            torch.set_num_threads(count)
            try:
                beside = packed_attention(*spoiled, ends, scale=0.1, window=window, impl="cpu")[:, :, begin:end]
            finally:
                torch.set_num_threads(threads)
            assert torch.equal(beside, alone)
        if end > begin:
            mask = None if window is None else ((near[:, None] - near).abs() < window)[None]
            assert torch.equal(attention(*row, mask, scale=0.1, impl="cpu"), alone)


@BOTH
def test_no_packed_rows(impl):
    query, key, value, ends = (x[:, :, :0] if x.dim() == 4 else x[:1] for x in packed())
    assert packed_attention(query, key, value, ends, scale=1.0, impl=impl).shape == (1, 4, 0, 64)


def test_bad_packed_rows():
    query, key, value, ends = packed(lengths=(2, 3))
    for arguments, options, kind, message in (
        ((query, key, value, ends.long()), {}, TypeError, "ends must be int32"),
        ((query, key, value, ends[:2]), {}, ValueError, r"ends must go from 0 to 5 and not fall, got \[0, 2\]"),
        ((query, key, value, ends[[0, 2, 1, 2]]), {}, ValueError, r"got \[0, 5, 2, 5\]"),
        ((query, key, value, ends[:0]), {}, ValueError, r"got \[\]"),
        ((query, key[:, :, :4], value[:, :, :4], ends), {}, ValueError, "packed rows must be one, .* got 1, 5 and 4"),
        ((query, key, value, ends), dict(window=0), ValueError, "window must be at least 1, got 0"),
        ((query, key, value, ends), dict(impl="triton"), ValueError, "does not exist for attention"),
    ):
        with pytest.raises(kind, match=message):
            packed_attention(*arguments, scale=1.0, **options)
    with pytest.raises(RuntimeError, match="no gradient"):
        packed_attention(query.requires_grad_(), key, value, ends, scale=1.0)
