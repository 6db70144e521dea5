"""truncation_floor: every implementation against a float64 truth that compares each logit with each other."""

import math

import pytest
import torch

from dllm_kernels import _impl, truncation_floor
from dllm_kernels.testing import largest_allowed, make_logits, poisoned_memory

cpu_kernel = pytest.mark.skipif(_impl.why_not_cpu() is not None, reason=f"no extension: {_impl.why_not_cpu()}")
BOTH = pytest.mark.parametrize("impl", ["reference", pytest.param("cpu", marks=cpu_kernel)])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = math.inf, math.nan


def assert_is_the_floor(floor, logits, T=1.0, top_k=None, top_p=None):
    """`floor` is a logit of its row that is kept, and the next smaller one is not.

    Masses are float64 sums over the strictly larger logits. A mass may miss top_p by twice the error that plain PyTorch
    may make when it sorts and sums probabilities in float32.
    """
    for x, t, temperature in zip(
        logits.double(), floor.double(), torch.as_tensor(T).double().expand(len(logits)), strict=True
    ):
        p = (x / temperature).softmax(-1)
        order = x.sort(descending=True).indices
        plain = (x.float() / temperature.float()).softmax(-1)[order].cumsum(-1)
        slack = largest_allowed(plain.double() - p[order].cumsum(-1), torch.finfo(torch.float32).eps)
        p_max, k = (INF if top_p is None else top_p), (INF if top_k is None else top_k)
        assert (x == t).any(), f"{t} is no logit of the row"
        assert p[x > t].sum() <= p_max + slack and (x > t).sum() < k, f"{t} is not kept"
        if (x < t).any() and (x[x < t] > -INF).any():
            assert p[x >= t].sum() > p_max - slack or (x >= t).sum() >= k, f"more than {t} is kept"


# one token; around one vector, one tile of the C++ kernel; several tiles
@BOTH
@pytest.mark.parametrize("vocab_size", [1, 2, 3, 50, 97, 1023, 1025, 8191, 8193])
@pytest.mark.parametrize("dtype", DTYPES)
def test_floor(impl, vocab_size, dtype):
    T = torch.tensor([1.0, 0.2, 4.0])
    for scale in (0.3, 3.0, 30.0):
        logits = make_logits(3, vocab_size, scale=scale, dtype=dtype)
        for cut in (dict(top_p=0.9), dict(top_p=1e-3), dict(top_k=1), dict(top_k=20), dict(top_k=20, top_p=0.5)):
            if cut.get("top_k", 0) >= vocab_size and "top_p" not in cut:
                continue
            with poisoned_memory():
                floor = truncation_floor(logits, temperature=T, **cut, impl=impl)
            assert floor.dtype == torch.float32
            assert_is_the_floor(floor, logits, T, **cut)


@BOTH
def test_every_boundary(impl):
    """Probabilities 1/2, 1/4, 1/8, ... are sums without rounding: top_p at each of them, a little below and above."""
    logits = -math.log(2.0) * torch.arange(1.0, 13.0)[None]
    for n in range(1, 11):
        mass = (1 - 2.0**-n) / (1 - 2.0**-12)
        below, above = (truncation_floor(logits, top_p=mass + d, impl=impl).item() for d in (-1e-5, 1e-5))
        assert below == logits[0, n - 1].item() and above == logits[0, n].item()
        assert truncation_floor(logits, top_k=n, impl=impl).item() == logits[0, n - 1].item()


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_at_the_boundary_all_stay(impl, dtype):
    logits = torch.tensor([[0.0, 2.0, 1.0, 1.0, 1.0, -0.0, 3.0, 2.0]], dtype=dtype)
    for k, floor in ((1, 3.0), (2, 2.0), (3, 2.0), (4, 1.0), (6, 1.0), (7, 0.0)):
        assert truncation_floor(logits, top_k=k, impl=impl).item() == floor
    equal = torch.full((1, 3000), 7.0, dtype=dtype)
    assert truncation_floor(equal, top_k=2, top_p=0.1, impl=impl).item() == 7.0


# half of all float32: the worst for candidates that are spread as logits are
@BOTH
def test_logits_of_every_magnitude(impl):
    logits = torch.cat([2.0 ** torch.arange(-126, 128), torch.zeros(1), -(2.0 ** torch.arange(-126, 128))])[None]
    for k in (1, 2, 100, 200, 254, 255, 256, 400, 508):
        floor = truncation_floor(logits, top_k=k, impl=impl).item()
        assert floor == logits[0].sort(descending=True).values[k - 1].item()
    floor = truncation_floor(torch.cat([logits, logits]), temperature=torch.tensor([1e-38, 1e30]), top_p=0.5, impl=impl)
    assert floor[0].item() == 2.0**127 and floor[1].isfinite()


@BOTH
def test_values_that_are_no_numbers(impl):
    logits = torch.full((5, 1500), -1e4)
    logits[0, 7], logits[0, 1400] = NAN, 5.0
    logits[1] = -INF
    logits[2] = NAN
    logits[3], logits[3, 1100] = -INF, 3.0
    logits[4, [3, 1200]] = INF
    largest = torch.finfo(torch.float32).max
    for cut in (dict(top_p=0.5), dict(top_k=1), dict(top_p=0.99, top_k=1)):
        assert truncation_floor(logits, **cut, impl=impl).tolist() == [5.0, -INF, -INF, 3.0, largest]
    assert truncation_floor(logits, top_k=40, impl=impl).tolist() == [-1e4, -INF, -INF, 3.0, -1e4]


@BOTH
def test_suppressed_tokens_rows_and_count(impl):
    logits, suppress = make_logits(6, 1100), torch.arange(1100) % 3 == 0
    full = truncation_floor(logits, suppress=suppress, top_p=0.6, top_k=40, temperature=0.9, impl=impl)
    assert_is_the_floor(full, logits.masked_fill(suppress, -INF), 0.9, 40, 0.6)
    rows = torch.tensor([4, 0, 6, -1, 5, 1])
    with poisoned_memory():
        got = truncation_floor(
            *(logits,), suppress=suppress, top_p=0.6, top_k=40, temperature=0.9,
            rows=rows, count=torch.tensor(5), impl=impl,
        )  # fmt: skip
    assert got.tolist() == [full[4], full[0], -INF, -INF, full[5], -INF]


@BOTH
def test_a_row_is_the_same_alone_in_any_batch_and_with_any_threads(impl):
    logits = make_logits(9, 20000)
    together = truncation_floor(logits, temperature=1.3, top_p=0.9, impl=impl)
    threads = torch.get_num_threads()
    try:
        for row, n_threads in ((0, 1), (4, 2), (8, 3)):
            torch.set_num_threads(n_threads)
            alone = truncation_floor(logits[row : row + 1], temperature=1.3, top_p=0.9, impl=impl)
            assert alone[0] == together[row]
    finally:
        torch.set_num_threads(threads)


@BOTH
def test_options_that_are_off_and_temperatures_that_mean_one(impl):
    logits = make_logits(4, 30)
    for off in ({}, dict(top_k=30), dict(top_p=1), dict(top_p=1 - 1e-12, top_k=99)):
        assert truncation_floor(logits, **off, impl=impl).tolist() == [-INF] * 4
    one = truncation_floor(logits, top_p=0.8, temperature=1.0, impl=impl)
    for T in (0.0, torch.tensor([0.0, -1.0, NAN, 1.0])):
        assert torch.equal(truncation_floor(logits, top_p=0.8, temperature=T, impl=impl), one)


@BOTH
def test_empty_and_strided(impl):
    assert truncation_floor(torch.empty(0, 5), top_k=2, impl=impl).shape == (0,)
    assert truncation_floor(torch.empty(0, 5), top_k=2, rows=torch.tensor([0]), impl=impl).tolist() == [-INF]
    wide = make_logits(6, 900)
    view = wide[::2, 100:777]
    assert torch.equal(truncation_floor(view, top_k=5, impl=impl), view.sort(descending=True).values[:, 4])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(logits=torch.zeros(2, 3).double()), TypeError, "got float64"),
        (dict(logits=torch.zeros(2, 0)), ValueError, "at least one token"),
        (dict(top_k=0), ValueError, "at least 1"),
        (dict(top_p=-1), ValueError, "above 0"),
        (dict(temperature=-1.0, top_k=1), ValueError, "at least 0"),
        (dict(suppress=torch.zeros(3)), TypeError, "suppress must be bool"),
        (dict(rows=torch.zeros(1)), TypeError, "rows must be int64"),
        (dict(count=torch.zeros(2, dtype=torch.int64)), ValueError, "one element"),
        (dict(impl="cuda"), ValueError, "impl must be one of"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        truncation_floor(**{"logits": torch.zeros(2, 3), **arguments})
