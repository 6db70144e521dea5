"""Attention: the reference against PyTorch's, the kernel against float64, and what its bits depend on."""

import pytest
import torch
import torch.nn.functional as F

from dllm_kernels import _impl, attention
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


@BOTH
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_it_errs_no_more_than_pytorch(impl, shape, dtype, masked):
    query, key, value, mask = make(*shape, dtype)
    mask = mask if masked else None
    true = of_torch(*(x.double() for x in (query, key, value)), mask, 0.2)
    with poisoned_memory():
        got = attention(query, key, value, mask, scale=0.2, impl=impl)
    assert got.dtype == dtype
    unit = torch.finfo(dtype).eps * value.abs().max().item()
    error, theirs = ((x.double() - true).abs().max().item() for x in (got, of_torch(query, key, value, mask, 0.2)))
    assert error <= 1.5 * theirs + unit


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
        ((query, key[:, :, :0], value[:, :, :0]), ValueError, "S at least 1"),
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
