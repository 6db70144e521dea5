"""linear_expected_embedding: the reference against enumeration, the C++ kernel against the reference, memory and rows."""

import math

import pytest
import torch

from benchmarks.timing import PeakMemory
from dllm_kernels import _impl, linear_expected_embedding, linear_gumbel_argmax
from dllm_kernels.linear_expected_embedding import cpu
from dllm_kernels.testing import (
    assert_no_worse,
    make_head,
    make_noise,
    plain_expected_embedding,
    poisoned_memory,
    true_expected_embedding,
)
from tests.watch import SyncWatch

cpu_kernel = pytest.mark.skipif(_impl.why_not_cpu() is not None, reason=f"no extension: {_impl.why_not_cpu()}")
CPU = pytest.param("cpu", marks=cpu_kernel)
BOTH = pytest.mark.parametrize("impl", ["reference", CPU])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = math.inf, math.nan

# rows: one, around the six whose sums are in registers, more than a block of 64; columns: one, around a panel of 64;
# tokens: one, around a chunk (64), a stripe (512) and a part (2048), several parts
SHAPES = [(1, 1, 1), (2, 63, 65), (6, 64, 512), (7, 65, 2049), (13, 100, 700), (66, 17, 5000), (64, 256, 2048)]


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


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip((*a.sampled, a.embedding), (*b.sampled, b.embedding), strict=True))


# the reference against the formula


@pytest.mark.parametrize("statistics", ["raw", "tempered"])
def test_reference_is_the_formula(statistics):
    hidden, weight, bias = (x.double() for x in make_head(3, 4, 9))
    T, softcap = [0.7, 0.0, 2.0], 5.0
    got = true_expected_embedding(
        hidden, weight, bias, **make_noise(3, torch.tensor(T)), softcap=softcap, statistics=statistics
    )
    for row in range(3):
        a = [math.fsum(x * y for x, y in zip(hidden[row].tolist(), w, strict=True)) for w in weight.tolist()]
        rate = 1 / float(torch.tensor(T[row])) if statistics == "tempered" and T[row] else 1.0
        z = [softcap * math.tanh((x + b) / softcap) * rate for x, b in zip(a, bias.tolist(), strict=True)]
        total = math.fsum(map(math.exp, z))
        p = [math.exp(x) / total for x in z]
        for column, of_column in enumerate(weight.t().tolist()):
            mean = math.fsum(x * y for x, y in zip(p, of_column, strict=True))
            assert got.embedding[row, column].item() == pytest.approx(mean, rel=1e-12, abs=1e-12)
        assert got.sampled.argmax[row] == z.index(max(z))
        entropy = math.fsum(x * math.log(x) for x in p)
        assert got.sampled.neg_entropy[row].item() == pytest.approx(entropy, rel=1e-12)


# every implementation against the truth


@cpu_kernel
@pytest.mark.parametrize(("rows", "width", "vocab_size"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_truth(rows, width, vocab_size, dtype):
    """An error of at most twice that of plain PyTorch; what is sampled is linear_gumbel_argmax's, bit for bit."""
    head, noise = make_head(rows, width, vocab_size, dtype=dtype), make_noise(rows, torch.linspace(0, 1.5, rows))
    with poisoned_memory():
        got = linear_expected_embedding(*head, **noise, softcap=9.0, impl="cpu")
    sampled = linear_gumbel_argmax(*head, **noise, softcap=9.0, statistics="tempered", impl="cpu")
    assert all(torch.equal(x, y) for x, y in zip(got.sampled, sampled, strict=True))
    plain = plain_expected_embedding(*head, temperature=noise["temperature"], softcap=9.0)
    truth = true_expected_embedding(*head, **noise, softcap=9.0).embedding
    assert_no_worse({"embedding": got.embedding}, {"embedding": plain}, {"embedding": truth})


@cpu_kernel
@pytest.mark.parametrize("scale", [0.0, 1.0, 40.0])
def test_rows_that_are_unsure_and_rows_that_are_sure(scale):
    """Also where the largest logit grows from stripe to stripe, and where all but few weights are zero."""
    hidden, weight, _ = make_head(12, 48, 9000, scale=scale)
    bias = torch.linspace(0, 3 * scale, 9000)
    for statistics in ("raw", "tempered"):
        options = dict(**make_noise(12, torch.full((12,), 0.4)), statistics=statistics)
        got = linear_expected_embedding(hidden, weight, bias, **options, impl="cpu")
        truth = true_expected_embedding(hidden, weight, bias, **options).embedding
        T = torch.full((12,), 0.4 if statistics == "tempered" else 1.0)
        plain = plain_expected_embedding(hidden, weight, bias, temperature=T)
        assert_no_worse({"embedding": got.embedding}, {"embedding": plain}, {"embedding": truth})


@BOTH
def test_one_certain_token_is_its_embedding(impl):
    hidden, weight = torch.eye(5) * 1000, torch.eye(5).repeat(600, 1)
    weight[5:] *= 0.5
    got = linear_expected_embedding(hidden, weight, impl=impl)
    assert torch.equal(got.embedding, torch.eye(5)) and got.sampled.argmax.tolist() == [0, 1, 2, 3, 4]


@BOTH
def test_suppressed_tokens_have_no_share(impl):
    head, noise = make_head(9, 24, 3000), make_noise(9, torch.linspace(0, 2, 9))
    suppress = torch.arange(3000) % 3 != 1
    got = linear_expected_embedding(*head, **noise, suppress=suppress, impl=impl)
    kept = [head[0], *(x[~suppress] for x in head[1:])]
    expected = true_expected_embedding(*kept, **noise).embedding
    torch.testing.assert_close(got.embedding.double(), expected, rtol=1e-5, atol=1e-5)
    assert not suppress[got.sampled.token].any()


@BOTH
def test_rows_count_and_nothing_to_choose(few_rows, impl):
    hidden, weight, bias = make_head(20, 24, 3000)
    hidden[7] = NAN
    rows = torch.tensor([19, 0, 3, 3, 20, -1, 7, *range(8, 18), *range(18), 2])
    noise = make_noise(len(rows), 1.0)
    with poisoned_memory():
        got = linear_expected_embedding(
            hidden, weight, bias, **noise, rows=rows, count=torch.tensor(len(rows) - 1), impl=impl
        )
    there = (rows >= 0) & (rows < 20) & (rows != 7)
    there[-1] = False
    mine = {name: x if name == "temperature" else x[there] for name, x in noise.items()}
    expected = linear_expected_embedding(hidden[rows[there]], weight, bias, **mine, impl=impl)
    assert same_bits(type(got)(type(got.sampled)(*(x[there] for x in got.sampled)), got.embedding[there]), expected)
    assert (got.embedding[~there] == 0).all() and (got.sampled.token[~there] == -1).all()
    all_hidden = linear_expected_embedding(weight[:2], weight, suppress=torch.ones(3000, dtype=torch.bool), impl=impl)
    assert (all_hidden.embedding == 0).all() and all_hidden.sampled.argmax.tolist() == [-1, -1]


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_logits(impl, dtype):
    hidden, weight, bias = make_head(4, 6, 700, dtype=dtype)
    bias[5], bias[6] = -INF, INF
    got = linear_expected_embedding(hidden, weight, bias, impl=impl)
    torch.testing.assert_close(got.embedding, weight[6].expand(4, 6), rtol=1e-3, atol=1e-6)
    capped = linear_expected_embedding(hidden, weight, bias, softcap=2.0, impl=impl)
    expected = torch.tanh((hidden.float() @ weight.float().t() + bias.float()).to(dtype).float() / 2) * 2
    p = expected.masked_fill(torch.arange(700) == 5, -INF).softmax(-1)
    torch.testing.assert_close(capped.embedding.float(), p @ weight.float(), rtol=2e-2, atol=2e-2)


@BOTH
def test_empty(impl):
    got = linear_expected_embedding(*make_head(0, 4, 30), impl=impl)
    assert got.embedding.shape == (0, 4) and [x.shape for x in got.sampled] == [(0,)] * 6
    none = linear_expected_embedding(*make_head(3, 4, 30), count=torch.tensor(0), impl=impl)
    assert (none.embedding == 0).all() and (none.sampled.token == -1).all()


@cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_threads(threads, dtype):
    """Bit for bit."""
    head, noise = make_head(33, 70, 20001, dtype=dtype), make_noise(33, torch.linspace(0, 2, 33))
    found = []
    for n in (1, 2, 3, 5):
        threads(n)
        found.append(linear_expected_embedding(*head, **noise, softcap=5.0, impl="cpu"))
    assert all(same_bits(found[0], other) for other in found[1:])


@cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_in_any_batch(few_rows, dtype):
    """Bit for bit, alone and in any company; sure rows beside unsure ones."""
    hidden, weight, bias = make_head(90, 70, 5001, dtype=dtype)
    hidden[::3] *= 30
    noise = make_noise(90, torch.linspace(0, 2, 90))
    together = linear_expected_embedding(hidden, weight, bias, **noise, impl="cpu")
    for rows in (slice(0, 1), slice(89, 90), slice(5, 7), slice(31, 35), slice(60, 68), slice(3, 20), slice(1, 64)):
        mine = {name: x[rows] for name, x in noise.items()}
        alone = linear_expected_embedding(hidden[rows], weight, bias, **mine, impl="cpu")
        sampled = type(together.sampled)(*(x[rows] for x in together.sampled))
        assert same_bits(alone, type(together)(sampled, together.embedding[rows]))


@BOTH
def test_autocast_and_gradients(impl):
    head = [x.requires_grad_() for x in make_head(16, 24, 300)]
    expected = linear_expected_embedding(*(x.bfloat16() for x in head), impl=impl)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = linear_expected_embedding(*head, impl=impl)
    assert same_bits(got, expected) and not got.embedding.requires_grad and got.embedding.dtype == torch.bfloat16


@cpu_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_operands(dtype):
    hidden, weight, bias = make_head(32, 70, 3000, dtype=dtype)
    hidden[:, 41:], weight[:, 41:] = NAN, NAN
    given = hidden[::2, :41], weight[:, :41], bias
    got = linear_expected_embedding(*given, impl="cpu")
    assert same_bits(got, linear_expected_embedding(*(x.contiguous() for x in given), impl="cpu"))


@cpu_kernel
@pytest.mark.parametrize("rows", [64, 256])
def test_memory_is_the_formula_of_the_docstring(threads, rows):
    n, width = 2, 128
    threads(n)
    head, noise = make_head(rows, width, 50368), make_noise(rows, 1.0)
    peaks = []
    for _ in range(3):
        with PeakMemory(torch.device("cpu")) as memory:
            linear_expected_embedding(*head, **noise, impl="cpu")
        if memory.bytes is None:
            pytest.skip(memory.how)
        peaks.append(memory.bytes)
    each = (4 * width + 292) * rows
    formula = n * (2112 * min(rows, 64) + 16384 + 64 * rows + 32 * width + each) + (8 * width + 92) * rows
    waiting, results = 4 * each, (4 * width + 100) * rows
    assert min(peaks) <= formula + waiting + results + 2**18  # pages begun
    assert formula < rows * 50368 * 4 / 10


@cpu_kernel
def test_nothing_waits_for_a_device():
    head, noise = make_head(70, 8, 5000), make_noise(70, torch.ones(70))
    rows, count, flags = torch.arange(70), torch.tensor(3), torch.zeros(5000, dtype=torch.bool)
    with SyncWatch() as watch:
        linear_expected_embedding(*head, **noise, rows=rows, count=count, suppress=flags, softcap=3.0, impl="cpu")
    assert watch.operators > 10 and not watch.seen


# bad input: the rule and what was got, before anything runs

HIDDEN, WEIGHT, BIAS = make_head(2, 3, 8)
BAD = [
    (dict(hidden=HIDDEN.double()), TypeError, "hidden must be float32 or bfloat16 or float16, got float64"),
    (dict(weight=WEIGHT.bfloat16()), TypeError, "weight must be float32, got bfloat16"),
    (dict(weight=WEIGHT[:, :2]), ValueError, r"weight must have shape \[V, 3\], got \[8, 2\]"),
    (dict(bias=BIAS[:7]), ValueError, r"bias must have shape \[8\], got \[7\]"),
    (dict(temperature=-0.1), ValueError, "at least 0, got -0.1"),
    (dict(temperature=1.0), ValueError, "needs seeds and positions"),
    (dict(suppress=torch.zeros(8)), TypeError, "suppress must be bool"),
    (dict(statistics="cooked"), ValueError, "statistics must be one of raw, tempered, got 'cooked'"),
    (dict(softcap=0.0), ValueError, "softcap must be above 0"),
    (dict(rows=torch.zeros(2, dtype=torch.int32)), TypeError, "rows must be int64"),
    (dict(count=torch.zeros(2, dtype=torch.int64)), ValueError, "count must have one element"),
    (dict(impl="cuda"), ValueError, "impl must be one of"),
    (dict(begin_suppress=None), TypeError, "begin_suppress"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        linear_expected_embedding(**{"hidden": HIDDEN, "weight": WEIGHT, "bias": BIAS, **arguments})
