"""linear_gumbel_argmax: the reference against its formula, the CPU's plans against the reference, memory and rows."""

import math

import pytest
import torch
import torch.nn.functional as F

from benchmarks.timing import PeakMemory
from dllm_kernels import _impl, gumbel_argmax, linear_gumbel_argmax
from dllm_kernels._linear import linear
from dllm_kernels.linear_gumbel_argmax import cpu
from dllm_kernels.testing import (
    STATISTICS,
    assert_head_within_budget,
    assert_no_worse,
    make_head,
    make_noise,
    poisoned_memory,
    true_linear_gumbel_argmax,
)
from tests.formula_of_draws import drawn_token
from tests.watch import SyncWatch, thread_peak_bytes

cpu_kernel = pytest.mark.skipif(_impl.why_not_cpu() is not None, reason=f"no extension: {_impl.why_not_cpu()}")
CPU = pytest.param("cpu", marks=cpu_kernel)
BOTH = pytest.mark.parametrize("impl", ["reference", CPU])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = math.inf, math.nan

# rows: around a vector (4, 8, 16), two, three and four of the widest, blocks of four; tokens: one, around what is
# multiplied (3 to 8), turned (48) and reduced (384) at a time, several stripes; an odd width
SHAPES = [
    (1, 8, 1),
    (2, 1, 7),
    (4, 35, 500),
    (5, 260, 60),
    (8, 130, 395),
    (9, 40, 390),
    (15, 64, 97),
    (17, 33, 130),
    (16, 96, 1025),
    (33, 64, 5000),
    (48, 7, 385),
    (64, 16, 48),
    (65, 10, 51),
    (150, 5, 400),
]


@pytest.fixture
def few_rows(monkeypatch):
    """At most 32 rows at a time."""
    monkeypatch.setattr(cpu, "BLOCK_R", 32)


@pytest.fixture
def threads():
    """Sets the number of threads, for this test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def two_threads(threads):
    threads(2)


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# the reference against the formula


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_reference_is_the_formula(temperature):
    hidden, weight, bias = make_head(4, 6, 9, scale=1.0)
    blind = make_head(4, 6, 1, seed=1)[0]
    noise, s, rows = make_noise(3, temperature), 1.5, torch.tensor([2, 0, 3])
    got = linear_gumbel_argmax(
        hidden, weight, bias, **noise, rows=rows, unconditional=blind, cfg_scale=s, impl="reference"
    )

    def logits_of(h):
        return [math.fsum(a * b for a, b in zip(h, w, strict=True)) for w in weight.tolist()]

    for i, row in enumerate(rows.tolist()):
        c, u = logits_of(hidden[row].tolist()), logits_of(blind[row].tolist())
        l = [u[v] + (s + 1) * (c[v] - u[v]) + bias[v].item() for v in range(9)]  # guidance as samplers have it
        address = (int(noise[name][i]) for name in ("seeds", "positions", "step"))
        token = drawn_token(dict(enumerate(l)), temperature, *address)
        lse = math.log(math.fsum(map(math.exp, l)))
        # each of some ten roundings at most half an ulp of the largest number that meets it
        error = 5 * torch.finfo(torch.float32).eps * max(map(abs, [*l, *(2.5 * x for x in c), *(1.5 * x for x in u)]))
        assert got.token[i] == token
        assert got.log_prob[i].item() == pytest.approx(l[token] - lse, abs=2 * error)
        assert got.lse[i].item() == pytest.approx(lse, abs=error)


# the CPU's plan against the reference


@cpu_kernel
@pytest.mark.parametrize(("rows", "width", "vocab_size"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_against_the_truth(two_threads, rows, width, vocab_size, dtype, temperature):
    head, noise = make_head(rows, width, vocab_size, dtype=dtype), make_noise(rows, torch.full((rows,), temperature))
    with poisoned_memory():
        got = linear_gumbel_argmax(*head, **noise, impl="cpu")
    truth = true_linear_gumbel_argmax(*head, **noise)
    if dtype == torch.float32:
        assert torch.equal(got.token, truth.token)
    assert torch.equal(got.token, gumbel_argmax(linear(*head), **noise, impl="cpu").token)
    assert_head_within_budget(got, *head, **noise)


@cpu_kernel
@pytest.mark.parametrize("bias", [True, False])
def test_many_stripes_and_blocks_of_rows(few_rows, two_threads, bias):
    hidden, weight, bias = (*make_head(50, 40, 7001)[:2], make_head(1, 1, 7001)[2] if bias else None)
    noise = make_noise(50, torch.linspace(0, 2, 50))
    got = linear_gumbel_argmax(hidden, weight, bias, **noise, impl="cpu")
    expected = gumbel_argmax(linear(hidden, weight, bias), **noise, impl="cpu")
    assert torch.equal(got.token, expected.token)
    assert_head_within_budget(got, hidden, weight, bias, **noise)


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
def test_guidance_is_combined_before_the_head(impl, dtype):
    (hidden, weight, bias), blind = make_head(16, 32, 500, dtype=dtype), make_head(16, 32, 1, dtype=dtype, seed=1)[0]
    noise = make_noise(16, 0.5)
    got = linear_gumbel_argmax(hidden, weight, bias, **noise, unconditional=blind, cfg_scale=1.5, impl=impl)
    guided = (2.5 * hidden.float() - 1.5 * blind.float()).to(dtype)
    expected = linear_gumbel_argmax(guided, weight, bias, **noise, impl=impl)
    assert torch.equal(got.token, expected.token)
    off = linear_gumbel_argmax(hidden, weight, bias, **noise, unconditional=blind, impl=impl)
    assert same_bits(off, linear_gumbel_argmax(hidden, weight, bias, **noise, impl=impl))
    turned = blind.t().contiguous().t()  # of any strides, unlike hidden states
    again = linear_gumbel_argmax(hidden, weight, bias, **noise, unconditional=turned, cfg_scale=1.5, impl=impl)
    assert same_bits(again, got)


@BOTH
def test_rows_and_count(few_rows, impl):
    hidden, weight, bias = make_head(20, 24, 3000)
    rows = torch.tensor([19, 0, 3, 3, 20, -1, 7, 2, 5, 5, 5, 5, 5, 5, 5, 5, 1, 1])
    noise = make_noise(18, 1.0)  # one for each result row
    with poisoned_memory():
        got = linear_gumbel_argmax(hidden, weight, bias, **noise, rows=rows, count=torch.tensor(17), impl=impl)
    there = [i for i in range(17) if 0 <= rows[i] < 20]
    expected = linear_gumbel_argmax(hidden[rows.clamp(0, 19)], weight, bias, **noise, impl=impl)
    assert same_bits([field[there] for field in got], [field[there] for field in expected])
    for i in (4, 5, 17):
        assert [field[i].item() for field in got] == [-1, -INF, 0.0, -INF, -INF, -1]
    assert len(set(got.token[8:16].tolist())) > 1  # the same hidden row, other noise


@BOTH
@pytest.mark.parametrize("count", [-1, 0, 40, 99])
def test_count_over_blocks_of_rows(few_rows, impl, count):
    head = make_head(50, 8, 70)
    got = linear_gumbel_argmax(*head, count=torch.tensor([count]), impl=impl).token
    expected = linear_gumbel_argmax(*head, impl=impl).token.where(torch.arange(50) < count, -1)
    assert torch.equal(got, expected)


@BOTH
@pytest.mark.parametrize("statistics", ["raw", "tempered"])
def test_suppressed_tokens_and_statistics(two_threads, impl, statistics):
    head, noise = make_head(16, 24, 3000), make_noise(16, torch.linspace(0, 2, 16))
    suppress, begin = torch.arange(3000) % 3 == 0, torch.arange(3000) % 5 == 0
    hidden = dict(suppress=suppress, begin_suppress=begin, statistics=statistics)
    got = linear_gumbel_argmax(*head, **noise, **hidden, impl=impl)
    expected = gumbel_argmax(linear(*head), **noise, **hidden, impl="reference")
    assert torch.equal(got.token, expected.token)
    assert not suppress[got.token].any() and begin[got.token].any()
    for name in STATISTICS:
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=1e-5, atol=1e-5)


@cpu_kernel
@pytest.mark.parametrize("cut", [dict(top_k=3), dict(top_p=0.8), dict(top_k=50, top_p=0.9, statistics="tempered")])
def test_top_k_and_top_p(cut):
    """More rows than have whole rows of logits at a time."""
    head, noise = make_head(70, 24, 3000), make_noise(70, torch.linspace(0, 2, 70))
    got = linear_gumbel_argmax(*head, **noise, **cut, impl="cpu")
    assert torch.equal(got.token, linear_gumbel_argmax(*head, **noise, **cut, impl="reference").token)
    assert_head_within_budget(got, *head, **noise, **cut)
    some = linear_gumbel_argmax(*head, **noise, **cut, count=torch.tensor(66), impl="cpu").token
    assert torch.equal(some, got.token.where(torch.arange(70) < 66, -1))


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_are_no_numbers(impl, dtype):
    hidden, weight, bias = make_head(16, 4, 200, dtype=dtype)
    hidden[3, 1], hidden[5] = NAN, INF
    weight[7] = NAN
    weight[150, 2], bias[9] = INF, -INF
    got = linear_gumbel_argmax(hidden, weight, bias, impl=impl)
    product = torch.float32 if impl == "reference" else dtype  # that its logits have
    logits = F.linear(*(x.to(product) for x in (hidden, weight, bias)))
    assert torch.equal(got.token, gumbel_argmax(logits, impl="reference").token) and got.token[3] == -1
    assert not any(field.isnan().any() for field in got[1:])
    assert [field[3].item() for field in got] == [-1, -INF, 0.0, -INF, -INF, -1]


@cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_threads(threads, dtype):
    """Bit for bit."""
    head, noise = make_head(33, 24, 20001, dtype=dtype), make_noise(33, torch.linspace(0, 2, 33))
    found = []
    for n in (1, 2, 3, 5):
        threads(n)
        found.append(linear_gumbel_argmax(*head, **noise, begin_suppress=torch.arange(20001) % 5 == 0, impl="cpu"))
    assert all(same_bits(found[0], other) for other in found[1:])


@cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_in_any_batch(monkeypatch, dtype):
    """Bit for bit, alone and in any company, in vectors and blocks of other sizes and at other places of them."""
    (hidden, weight, bias), noise = make_head(150, 300, 3001, dtype=dtype), make_noise(150, torch.linspace(0, 2, 150))
    together = linear_gumbel_argmax(hidden, weight, bias, **noise, impl="cpu")
    monkeypatch.setattr(cpu, "BLOCK_R", 96)
    few = (slice(0, 1), slice(149, 150), slice(5, 7), slice(31, 35), slice(60, 65), slice(100, 108), slice(20, 29))
    for rows in (*few, slice(3, 20), slice(40, 75), slice(1, 64), slice(10, 120)):
        mine = {name: x[rows] for name, x in noise.items()}
        alone = linear_gumbel_argmax(hidden[rows], weight, bias, **mine, impl="cpu")
        assert same_bits(alone, [field[rows] for field in together])


@cpu_kernel
def test_products_are_exact_where_float32_is(two_threads):
    """Logits are integers below 2^24, also as sums of the largest products, and distinct: each token can win."""
    weight = torch.zeros(997, 41)
    weight[torch.arange(997), torch.arange(997) % 41] = torch.arange(997.0) + 1
    for n in (1, 16, 41):
        hidden = torch.eye(41)[:n] * 4096
        got = linear_gumbel_argmax(hidden, weight, None, impl="cpu")
        expected = (hidden.double() @ weight.double().t()).max(1)
        assert torch.equal(got.token, expected.indices)
        assert torch.equal(got.lse.double(), expected.values)  # gaps are 41 * 4096, beyond what a sum sees


@cpu_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_err_no_more_than_plain_pytorch(dtype):
    """However wide: of a head with one token, lse is the logit."""
    hidden, weight, _ = make_head(64, 4096, 16, dtype=dtype)
    got = torch.stack([linear_gumbel_argmax(hidden, token[None], impl="cpu").lse for token in weight], 1)
    truth = hidden.double() @ weight.double().t()
    plain = F.linear(hidden, weight)
    assert_no_worse({"logits": got.to(dtype)}, {"logits": plain}, {"logits": truth})


@BOTH
def test_empty(impl):
    head = make_head(0, 4, 30)
    assert [field.shape for field in linear_gumbel_argmax(*head, impl=impl)] == [(0,)] * 6
    got = linear_gumbel_argmax(*head, rows=torch.tensor([0, -1]), impl=impl)
    assert [field.tolist() for field in got] == [[-1, -1], [-INF] * 2, [0.0] * 2, [-INF] * 2, [-INF] * 2, [-1, -1]]
    assert linear_gumbel_argmax(*make_head(3, 4, 30), rows=torch.empty(0).long(), impl=impl).lse.shape == (0,)


@BOTH
def test_autocast_and_gradients(impl):
    head = [x.requires_grad_() for x in make_head(16, 24, 300)]
    expected = linear_gumbel_argmax(*(x.bfloat16() for x in head), impl=impl)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = linear_gumbel_argmax(*head, impl=impl)
    assert same_bits(got, expected) and not any(field.requires_grad for field in got)


@cpu_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_worker_threads_take_tensors_of_inference_mode(two_threads, dtype):
    """They do not know that the caller is in it."""
    noise, expected = (
        make_noise(16, 1.0),
        linear_gumbel_argmax(*make_head(16, 24, 5000, dtype=dtype), **make_noise(16, 1.0)),
    )
    with torch.inference_mode():
        head = [x.clone() for x in make_head(16, 24, 5000, dtype=dtype)]
        inside = linear_gumbel_argmax(*head, **noise, impl="cpu")
    assert head[0].is_inference()
    assert same_bits(inside, expected) and same_bits(linear_gumbel_argmax(*head, **noise, impl="cpu"), expected)


@cpu_kernel
def test_strided_operands(two_threads):
    hidden, weight, bias = make_head(32, 48, 5000)
    noise = make_noise(16, 1.0)
    given = hidden[::2, :24], weight[:, :24], bias
    got = linear_gumbel_argmax(*given, **noise, impl="cpu")
    expected = gumbel_argmax(F.linear(*given), **noise, impl="cpu")
    assert torch.equal(got.token, expected.token)
    got = linear_gumbel_argmax(given[0], given[1].contiguous(), bias, **noise, impl="cpu")
    assert torch.equal(got.token, expected.token)


@cpu_kernel
@pytest.mark.parametrize("width", [23, 24])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_lies_between_rows_is_not_multiplied(dtype, width):
    """Not by zero either, with which an odd number of bfloat16 is made even."""
    hidden, weight, bias = make_head(20, 26, 500, dtype=dtype)
    hidden[:, width:] = weight[:, width:] = NAN
    given = hidden[:, :width], weight[:, :width]
    got = linear_gumbel_argmax(*given, bias, impl="cpu")
    assert same_bits(got, linear_gumbel_argmax(*(x.contiguous() for x in given), bias, impl="cpu"))


# memory and syncs


@cpu_kernel
@pytest.mark.parametrize(
    ("rows", "width", "vocab_size", "dtype"),
    [
        *((rows, 64, 50368, dtype) for rows in (64, 512) for dtype in (torch.float32, torch.bfloat16)),
        (8, 8192, 3001, torch.float16),  # a narrow vector; weights are converted
    ],
)
def test_memory_is_the_formula_of_the_docstring(threads, rows, width, vocab_size, dtype):
    n_threads = 2
    threads(n_threads)
    head, noise = make_head(rows, width, vocab_size, dtype=dtype), make_noise(rows, 1.0)

    def call():
        linear_gumbel_argmax(*head, **noise, impl="cpu")

    assert thread_peak_bytes(call) <= 100 * rows + 500  # no tensor but the results and the noise's
    peaks = []
    for _ in range(3):  # the peak is that of the process, to which its other threads only add
        with PeakMemory(torch.device("cpu")) as memory:
            call()
        if memory.bytes is None:
            pytest.skip(memory.how)
        peaks.append(memory.bytes)
    formula = n_threads * (2112 * min(rows, 64) + 44 * rows + 32 * width) + (4 * width + 140) * rows
    waiting = 40 * rows * 20
    assert min(peaks) <= formula + waiting + 2**17  # pages begun
    if rows >= 64:
        assert formula < rows * vocab_size * dtype.itemsize / 10  # of what all logits would take


@cpu_kernel
def test_nothing_waits_for_a_device():
    head, noise = make_head(70, 8, 5000), make_noise(70, torch.ones(70))
    rows, count, flags = torch.arange(70), torch.tensor(3), torch.zeros(5000, dtype=torch.bool)
    with SyncWatch() as watch:
        linear_gumbel_argmax(
            *head,
            **noise,
            rows=rows,
            count=count,
            suppress=flags,
            begin_suppress=flags,
            unconditional=head[0],
            cfg_scale=1.0,
            impl="cpu",
        )
    assert watch.operators > 10 and not watch.seen


# bad input: the rule and what was got, before anything runs

HIDDEN, WEIGHT, BIAS = make_head(2, 3, 8)
BAD = [
    (dict(hidden=HIDDEN.double()), TypeError, "hidden must be float32 or bfloat16 or float16, got float64"),
    (dict(hidden=HIDDEN[0]), ValueError, r"hidden must have shape \[N, H\], got \[3\]"),
    (dict(hidden=HIDDEN[:, :0], weight=WEIGHT[:, :0]), ValueError, "at least one column"),
    (dict(hidden=torch.zeros(3, 2).t()), ValueError, "hidden must have adjacent columns"),
    (dict(weight=WEIGHT.bfloat16()), TypeError, "weight must be float32, got bfloat16"),
    (dict(weight=WEIGHT[:, :2]), ValueError, r"weight must have shape \[V, 3\], got \[8, 2\]"),
    (dict(weight=WEIGHT[:0]), ValueError, "from 1 to 2.* tokens, got 0"),
    (dict(weight=torch.zeros(3, 8).t()), ValueError, "weight must have adjacent columns"),
    (dict(bias=BIAS[:7]), ValueError, r"bias must have shape \[8\], got \[7\]"),
    (dict(bias=BIAS.bfloat16()), TypeError, "bias must be float32"),
    (dict(temperature=-0.1), ValueError, "at least 0, got -0.1"),
    (dict(temperature=1.0), ValueError, "needs seeds and positions"),
    (dict(temperature=1.0, seeds=0, positions=torch.zeros(3).long()), ValueError, r"shape \[2\], got \[3\]"),
    (
        dict(temperature=1.0, seeds=0, positions=torch.zeros(2).long(), rows=torch.zeros(3).long()),
        ValueError,
        r"positions must have one element or shape \[3\], got \[2\]",
    ),
    (dict(suppress=torch.zeros(8)), TypeError, "suppress must be bool"),
    (dict(begin_suppress=torch.zeros(7, dtype=torch.bool)), ValueError, r"shape \[8\], got \[7\]"),
    (dict(statistics="cooked"), ValueError, "statistics must be one of raw, tempered, got 'cooked'"),
    (dict(top_k=0), ValueError, "top_k must be at least 1"),
    (dict(top_p=1.5), ValueError, "top_p must be above 0 and at most 1"),
    (dict(cfg_scale=1.0), ValueError, "cfg_scale 1.0 needs unconditional"),
    (dict(cfg_scale=-1.0, unconditional=HIDDEN), ValueError, "cfg_scale must be finite and at least 0"),
    (dict(cfg_scale=1.0, unconditional=HIDDEN[:1]), ValueError, r"unconditional must have shape \[2, 3\]"),
    (dict(rows=torch.zeros(2, dtype=torch.int32)), TypeError, "rows must be int64"),
    (dict(count=torch.zeros(2, dtype=torch.int64)), ValueError, "count must have one element"),
    (dict(impl="cuda"), ValueError, "impl must be one of"),
    (dict(unknown=1), TypeError, "unknown"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        linear_gumbel_argmax(**{"hidden": HIDDEN, "weight": WEIGHT, "bias": BIAS, **arguments})
