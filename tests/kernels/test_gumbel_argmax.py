"""gumbel_argmax: the reference against independent truth, and every fast implementation against the reference."""

import itertools
import math

import pytest
import torch

from dllm_kernels import _impl, gumbel_argmax
from dllm_kernels.testing import (
    assert_within_budget,
    make_logits,
    make_noise,
    poisoned_memory,
    true_gumbel_argmax,
)
from tests.formula_of_draws import drawn_token
from tests.goodness_of_fit import P_MIN, chi_square_p

cpu_kernel = pytest.mark.skipif(_impl.why_not_cpu() is not None, reason=f"no extension: {_impl.why_not_cpu()}")
CPU = pytest.param("cpu", marks=cpu_kernel)
BOTH = pytest.mark.parametrize("impl", ["reference", CPU])

# one token; one vector; around one vector, one tile (1024) and one chunk (16384) of the C++ kernel; a real vocabulary
VOCABULARIES = [1, 2, 3, 7, 16, 33, 1023, 1024, 1025, 16384, 16385, 30522]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def address(noise, row):
    return [int(noise[name][row]) for name in ("seeds", "positions", "step")]


# the reference against enumeration in Python floats


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_reference_is_the_formula(temperature):
    logits = make_logits(5, 11)
    noise = make_noise(5, temperature)
    got = gumbel_argmax(logits, **noise, impl="reference")
    for row in range(5):
        x = logits[row].tolist()
        total = math.fsum(map(math.exp, x))
        p = sorted((math.exp(value) / total for value in x), reverse=True)
        token = drawn_token(dict(enumerate(x)), temperature, *address(noise, row))
        assert got.token[row] == token
        expected = {
            "log_prob": math.log(math.exp(x[token]) / total),
            "margin": p[0] - p[1],
            "neg_entropy": math.fsum(q * math.log(q) for q in p),
            "lse": math.log(total),
        }
        for name, value in expected.items():
            assert getattr(got, name)[row].item() == pytest.approx(value, abs=8 * torch.finfo(torch.float32).eps)


# every implementation against the reference


@cpu_kernel
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_greedy(vocab_size, dtype):
    logits = make_logits(3, vocab_size, dtype=dtype)
    with poisoned_memory():
        got = gumbel_argmax(logits, impl="cpu")
    assert torch.equal(got.token, logits.float().argmax(-1))
    assert_within_budget(got, logits)


@cpu_kernel
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_sampled(vocab_size, dtype, temperature):
    logits, noise = make_logits(3, vocab_size, dtype=dtype), make_noise(3, temperature)
    with poisoned_memory():
        got = gumbel_argmax(logits, **noise, impl="cpu")
    expected = gumbel_argmax(logits, **noise, impl="reference")
    assert torch.equal(got.token, expected.token)
    assert_within_budget(got, logits, **{**noise, "temperature": torch.full((3,), temperature)})


# scales from flat to saturated; at 100 nearly all probability lies on one token
@cpu_kernel
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0, 100.0])
def test_many_draws_agree(scale):
    logits, noise = make_logits(256, 2000, scale=scale), make_noise(256, 1.0)
    got = gumbel_argmax(logits, **noise, impl="cpu")
    expected = gumbel_argmax(logits, **noise, impl="reference")
    assert torch.equal(got.token, expected.token)
    assert_within_budget(got, logits, **{**noise, "temperature": torch.ones(256)})


@BOTH
def test_temperature_per_row_and_what_is_not_above_zero_is_greedy(impl):
    temperature = torch.tensor([0.0, 1.0, -1.0, float("nan"), 0.5])
    logits, noise = make_logits(5, 3000), make_noise(5, temperature)
    got = gumbel_argmax(logits, **noise, impl=impl).token
    greedy = logits.argmax(-1)
    assert torch.equal(got[[0, 2, 3]], greedy[[0, 2, 3]])
    for row in (1, 4):
        one = {name: value[row : row + 1] for name, value in noise.items()}
        assert got[row] == gumbel_argmax(logits[row : row + 1], **one, impl="reference").token


@BOTH
@pytest.mark.parametrize("options", [{}, dict(statistics="tempered"), dict(statistics="tempered", top_k=40, top_p=0.8)])
def test_a_row_among_other_temperatures_has_the_bits_that_it_has_alone(impl, options):
    """Also at T = 0, where a call with that one number draws no noise and takes another way."""
    temperatures = [0.0, 1.0, 0.25, 0.0, 4.0]
    logits, noise = make_logits(5, 20000), make_noise(5, torch.tensor(temperatures))
    together = gumbel_argmax(logits, **noise, **options, impl=impl)
    for row, T in enumerate(temperatures):
        one = {name: value[row : row + 1] for name, value in noise.items()} | dict(temperature=T)
        alone = gumbel_argmax(logits[row : row + 1], **one, **options, impl=impl)
        assert all(torch.equal(a[row : row + 1], b) for a, b in zip(together, alone, strict=True))


@BOTH
def test_a_row_is_the_same_alone_in_any_batch_and_with_any_threads(impl):
    logits, noise = make_logits(9, 20000), make_noise(9, 1.0)
    together = gumbel_argmax(logits, **noise, impl=impl)
    threads = torch.get_num_threads()
    try:
        for row, n_threads in itertools.product((0, 4, 8), (1, 2, 3)):
            torch.set_num_threads(n_threads)
            one = {k: v[row : row + 1] if isinstance(v, torch.Tensor) else v for k, v in noise.items()}
            alone = gumbel_argmax(logits[row : row + 1], **one, impl=impl)
            assert alone.token[0] == together.token[row]
            if impl == "cpu":  # the statistics too, bit for bit
                assert all(torch.equal(a[0], t[row]) for a, t in zip(alone, together, strict=True))
    finally:
        torch.set_num_threads(threads)


@BOTH
def test_ties_go_to_the_lowest_token(impl):
    logits = torch.zeros(2, 20000)
    logits[1, [700, 5000, 19999]] = 1.0
    assert gumbel_argmax(logits, impl=impl).token.tolist() == [0, 700]


@BOTH
def test_suppressed_tokens_count_nowhere(impl):
    logits, noise = make_logits(6, 3001), make_noise(6, 1.0)
    suppress = torch.zeros(3001, dtype=torch.bool)
    suppress[logits.argmax(-1)] = True
    suppress[2990:] = True
    got = gumbel_argmax(logits, **noise, suppress=suppress, impl=impl)
    hidden = gumbel_argmax(logits.masked_fill(suppress, -torch.inf), **noise, impl="reference")
    assert torch.equal(got.token, hidden.token) and not suppress[got.token].any()
    assert_within_budget(got, logits.masked_fill(suppress, -torch.inf), **{**noise, "temperature": torch.ones(6)})


@BOTH
def test_chosen_rows_and_count(impl):
    logits, noise = make_logits(7, 500), make_noise(7, 1.0)
    full = gumbel_argmax(logits, **noise, impl=impl)
    rows, count = torch.tensor([6, 0, 3, 3, 7, -1, 2]), torch.tensor(6)
    with poisoned_memory():
        got = gumbel_argmax(logits, **noise, rows=rows, count=count, impl=impl)
    for field, of_all in zip(got, full, strict=True):
        assert torch.equal(field[:4], of_all[rows[:4]])
    assert got.token[4:].tolist() == [-1, -1, -1]
    assert got.log_prob[4:].tolist() == got.lse[4:].tolist() == got.neg_entropy[4:].tolist() == [-math.inf] * 3
    assert got.margin[4:].tolist() == [0.0] * 3


@pytest.mark.parametrize("count", [-1, 0, 99])
@BOTH
def test_count_outside_the_rows(impl, count):
    logits = make_logits(3, 40)
    got = gumbel_argmax(logits, count=torch.tensor([count]), impl=impl).token
    assert got.tolist() == (logits.argmax(-1).tolist() if count == 99 else [-1, -1, -1])


@BOTH
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_are_no_numbers(impl, temperature, dtype):
    inf, nan = math.inf, math.nan
    logits = torch.full((5, 1500), -1e4, dtype=dtype)
    logits[0, 1400] = nan  # a NaN is never chosen
    logits[0, 1300] = 9.0
    logits[1] = -inf  # nothing to choose
    logits[2] = nan
    logits[3] = -inf  # all probability on one token
    logits[3, 1100] = 3.0
    logits[4, [1200, 5]] = inf  # the largest finite number, twice
    noise = make_noise(5, temperature)
    got = gumbel_argmax(logits, **noise, impl=impl)
    assert got.token.tolist() == [1300, -1, -1, 1100, 5]
    for row in (0, 3):
        assert got.log_prob[row] == 0 and got.margin[row] == 1 and abs(got.neg_entropy[row]) < 1e-30
    for row in (1, 2):
        assert got.log_prob[row] == got.lse[row] == got.neg_entropy[row] == -inf and got.margin[row] == 0
    assert got.log_prob[4].item() == pytest.approx(-math.log(2)) and got.margin[4] == 0


@BOTH
def test_temperatures_at_which_scores_overflow(impl):
    """T g beyond float32: a row with a finite logit still gets a token, and never a suppressed one."""
    suppress = torch.arange(300) % 3 == 0
    noise = make_noise(40, torch.full((40,), 3e38))
    drawn = gumbel_argmax(torch.zeros(40, 300), **noise, suppress=suppress, impl=impl)
    assert not suppress[drawn.token].any() and bool((drawn.log_prob > -torch.inf).all())
    assert gumbel_argmax(torch.zeros(40, 1), **noise, impl=impl).token.tolist() == [0] * 40


@BOTH
def test_empty_and_strided(impl):
    assert gumbel_argmax(torch.empty(0, 5), impl=impl).token.shape == (0,)
    assert gumbel_argmax(make_logits(2, 5), rows=torch.empty(0, dtype=torch.int64), impl=impl).lse.shape == (0,)
    wide = make_logits(6, 900)
    assert torch.equal(gumbel_argmax(wide[::2, 100:777], impl=impl).token, wide[::2, 100:777].argmax(-1))
    repeated = wide[:1, 3:800].expand(4, 797)
    assert torch.equal(gumbel_argmax(repeated, impl=impl).token, repeated.argmax(-1))


@cpu_kernel
def test_rows_times_vocabulary_beyond_int32():
    # one row read again and again through a stride of 0: addresses small, row x vocabulary beyond 2^31
    rows, logits = 2**31 // 30000 + 2, make_logits(1, 30000)
    chosen = torch.tensor([0, rows - 1])
    got = gumbel_argmax(logits.expand(rows, 30000), rows=chosen, impl="cpu")
    assert got.token.tolist() == logits.argmax(-1).tolist() * 2


@pytest.mark.parametrize("impl", [CPU])
def test_draws_follow_the_softmax(impl):
    """Chi-square over 16 tokens, 20,000 draws: p-value from the Wilson-Hilferty normal approximation."""
    n, logits = 20000, make_logits(1, 16, scale=1.5)
    drawn = gumbel_argmax(
        logits.expand(n, 16), temperature=1.0, seeds=11, positions=torch.arange(n), step=2, impl=impl
    ).token
    expected = logits.double().softmax(-1)[0] * n
    chi2 = ((drawn.bincount(minlength=16) - expected).square() / expected).sum().item()
    z = ((chi2 / 15) ** (1 / 3) - (1 - 2 / (9 * 15))) / math.sqrt(2 / (9 * 15))
    assert abs(z) < 4, f"chi-square {chi2:.1f} for 15 degrees of freedom"


@pytest.mark.parametrize("impl", [CPU])
def test_heavy_tail_is_not_lost(impl):
    """One head token, 100,000 tail tokens at logit gap 18: the tail has probability 1.5e-3. A sampler with 24-bit
    uniforms never draws it (its noise ends at 16.6 and the gap is 18)."""
    n, tail = 20000, 100_000
    logits = torch.full((1, tail + 1), -18.0)
    logits[0, 0] = 0.0
    drawn = gumbel_argmax(
        logits.expand(n, tail + 1), temperature=1.0, seeds=5, positions=torch.arange(n), impl=impl
    ).token
    p = tail * math.exp(-18) / (1 + tail * math.exp(-18))
    seen, deviation = int((drawn != 0).sum()), math.sqrt(n * p * (1 - p))
    assert abs(seen - n * p) < 4 * deviation, f"{seen} draws from the tail, expected {n * p:.1f}"


@cpu_kernel
def test_truth_is_float64():
    assert true_gumbel_argmax(make_logits(1, 10)).lse.dtype == torch.float64


# what samplers ask for besides: tokens that count only when chosen, statistics of what is drawn from, top-k and top-p

# a cold row, a hot one, and every way to say 0
TEMPERATURES = torch.tensor([1.0, 0.0, 0.3, 5.0, -1.0, math.nan])


@pytest.mark.parametrize("statistics", ["raw", "tempered"])
@pytest.mark.parametrize("T", [0.0, 0.7, 2.0])
def test_reference_with_every_option_is_the_formula(T, statistics):
    n, V = 5, 13
    logits, noise = make_logits(n, V, scale=1.5), make_noise(n, torch.full((n,), T))
    suppress, begin_suppress = torch.arange(V) % 5 == 4, torch.arange(V) % 3 == 0
    got = gumbel_argmax(
        *(logits,), **noise, suppress=suppress, begin_suppress=begin_suppress, statistics=statistics,
        top_k=7, top_p=0.9, impl="reference",
    )  # fmt: skip
    for row in range(n):
        x = {v: logits[row, v].item() for v in range(V) if not suppress[v]}
        p = {v: math.exp(x[v] / (T or 1)) / math.fsum(math.exp(u / (T or 1)) for u in x.values()) for v in x}
        larger = {v: [u for u in x if x[u] > x[v]] for v in x}
        kept = [v for v in x if len(larger[v]) < 7 and math.fsum(p[u] for u in larger[v]) <= 0.9]
        token = drawn_token({v: x[v] for v in kept}, T, *address(noise, row))
        assert got.token[row] == token
        rate = 1 / T if T and statistics == "tempered" else 1.0
        weight = {v: math.exp(x[v] * rate) for v in kept if not begin_suppress[v]}
        total = math.fsum(weight.values())
        q = [*sorted((w / total for w in weight.values()), reverse=True), 0.0]
        expected = {
            "log_prob": math.log(weight[token] / total) if token in weight else -math.inf,
            "margin": q[0] - q[1],
            "neg_entropy": math.fsum(value * math.log(value) for value in q if value),
            "lse": math.log(total),
        }
        for name, value in expected.items():
            assert getattr(got, name)[row].item() == pytest.approx(value, abs=16 * torch.finfo(torch.float32).eps)


@BOTH
@pytest.mark.parametrize("statistics", ["raw", "tempered"])
def test_begin_suppressed_tokens_may_be_chosen_and_count_nowhere(impl, statistics):
    logits, noise = make_logits(6, 3001), make_noise(6, TEMPERATURES)
    plain = gumbel_argmax(logits, **noise, impl=impl).token
    begin_suppress = torch.zeros(3001, dtype=torch.bool)
    begin_suppress[plain[[0, 1]]] = True  # what two rows choose
    begin_suppress[1500:1700] = True
    with poisoned_memory():
        got = gumbel_argmax(logits, **noise, begin_suppress=begin_suppress, statistics=statistics, impl=impl)
    assert torch.equal(got.token, plain)
    assert torch.equal(got.log_prob == -math.inf, begin_suppress[plain]) and begin_suppress[plain].sum() >= 2
    assert_within_budget(got, logits, **noise, begin_suppress=begin_suppress, statistics=statistics)


@BOTH
@pytest.mark.parametrize("statistics", ["raw", "tempered"])
def test_begin_suppressed_tokens_alone(impl, statistics):
    """Every token of a row: there is a token and nothing to measure. All but one: it has all probability."""
    logits, noise = make_logits(3, 2100), make_noise(3, torch.tensor([1.0, 0.0, 0.5]))
    everything = torch.ones(2100, dtype=torch.bool)
    got = gumbel_argmax(logits, **noise, begin_suppress=everything, statistics=statistics, impl=impl)
    assert torch.equal(got.token, gumbel_argmax(logits, **noise, impl="reference").token)
    assert got.margin.tolist() == [0.0] * 3
    assert got.log_prob.tolist() == got.neg_entropy.tolist() == got.lse.tolist() == [-math.inf] * 3
    everything[1800] = False
    got = gumbel_argmax(logits, **noise, begin_suppress=everything, statistics=statistics, impl=impl)
    assert got.margin.tolist() == [1.0] * 3 and (got.neg_entropy.abs() < 1e-30).all() and got.lse.isfinite().all()


@cpu_kernel
@pytest.mark.parametrize("vocab_size", [1, 2, 50, 1025, 16385])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_of_what_is_drawn_from(vocab_size, scale, dtype):
    logits, noise = make_logits(6, vocab_size, scale=scale, dtype=dtype), make_noise(6, TEMPERATURES)
    with poisoned_memory():
        got = gumbel_argmax(logits, **noise, statistics="tempered", impl="cpu")
    assert torch.equal(got.token, gumbel_argmax(logits, **noise, impl="cpu").token)
    assert_within_budget(got, logits, **noise, statistics="tempered")


@BOTH
def test_statistics_at_temperatures_beyond_sense(impl):
    """Nothing is NaN: all probability on the likeliest token, or the same for all."""
    logits = make_logits(5, 1100)
    logits[:, 500:] = -math.inf
    noise = make_noise(5, torch.tensor([1e-45, 1e-38, 1e30, 3e38, math.inf]))
    got = gumbel_argmax(logits, **noise, statistics="tempered", impl=impl)
    assert not any(field.isnan().any() for field in got[1:])
    assert got.token.max() < 500 and torch.equal(got.token[:2], logits[:2].argmax(-1))
    assert got.log_prob[:2].tolist() == [0.0] * 2 and got.margin[:2].tolist() == [1.0] * 2
    assert (got.margin[2:] < 1e-30).all()
    assert got.neg_entropy[2:].tolist() == pytest.approx([-math.log(500)] * 3)


# ties at the boundary are the rule in bfloat16; V below and above k, ragged
@BOTH
@pytest.mark.parametrize("vocab_size", [1, 2, 50, 97, 8193])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("statistics", ["raw", "tempered"])
def test_what_top_k_and_top_p_cut_off_counts_nowhere(impl, vocab_size, dtype, statistics):
    logits, noise = make_logits(6, vocab_size, dtype=dtype), make_noise(6, TEMPERATURES)
    suppress = torch.arange(vocab_size) % 7 == 5
    for cut in (dict(top_k=20), dict(top_p=0.8), dict(top_k=30, top_p=0.95), dict(top_k=1)):
        with poisoned_memory():
            got = gumbel_argmax(logits, **noise, **cut, suppress=suppress, statistics=statistics, impl=impl)
        truth = true_gumbel_argmax(logits, **noise, **cut, suppress=suppress)
        assert torch.equal(got.token, truth.token)
        assert_within_budget(got, logits, **noise, **cut, suppress=suppress, statistics=statistics)


@BOTH
def test_options_that_cut_nothing_change_nothing(impl):
    logits, noise = make_logits(6, 300), make_noise(6, TEMPERATURES)
    plain = gumbel_argmax(logits, **noise, impl=impl)
    for cut in (dict(top_k=300), dict(top_k=10**9), dict(top_p=1), dict(top_p=1.0, top_k=None)):
        got = gumbel_argmax(logits, **noise, **cut, impl=impl)
        assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True))


@BOTH
def test_filtered_rows_that_are_chosen_or_empty(impl):
    logits, noise = make_logits(6, 700), make_noise(6, torch.full((6,), 0.8))
    logits[2], logits[4] = -math.inf, math.nan
    full = gumbel_argmax(logits, **noise, top_p=0.7, top_k=9, statistics="tempered", impl=impl)
    assert full.token[[2, 4]].tolist() == [-1, -1] and full.lse[[2, 4]].tolist() == [-math.inf] * 2
    rows, count = torch.tensor([5, 0, 2, 9, 1, 3]), torch.tensor([5])
    got = gumbel_argmax(
        *(logits,), **noise, top_p=0.7, top_k=9, statistics="tempered", rows=rows, count=count, impl=impl
    )
    assert all(torch.equal(a[[0, 1, 2, 4]], b[rows[[0, 1, 2, 4]]]) for a, b in zip(got, full, strict=True))
    assert got.token[[3, 5]].tolist() == [-1, -1]


@pytest.mark.parametrize("impl", [CPU])
def test_filtered_draws_follow_the_filtered_softmax(impl):
    """20,000 draws at T 0.7 from 40 tokens cut to at most 12 and 90 %: law softmax(l / T), renormalized; the reported
    probability is that law."""
    n, T = 20000, 0.7
    logits = make_logits(1, 40, scale=1.0)
    drawn = gumbel_argmax(
        *(logits.expand(n, 40),), temperature=T, seeds=3, positions=torch.arange(n), step=1,
        top_k=12, top_p=0.9, statistics="tempered", impl=impl,
    )  # fmt: skip
    p = (logits.double() / T).softmax(-1)[0]
    larger = logits[0][None] > logits[0][:, None]
    law = p * ((larger.double() @ p <= 0.9) & (larger.sum(-1) < 12))
    law /= law.sum()
    assert 1 < (law > 0).sum() <= 12
    counts = drawn.token.bincount(minlength=40)
    assert counts[law == 0].sum() == 0
    assert chi_square_p(counts[law > 0], law[law > 0]) > P_MIN
    assert torch.allclose(drawn.log_prob.double(), law.log()[drawn.token], atol=1e-6)


# bad input: the rule and what was got, before anything runs

LOGITS = make_logits(2, 8)
BAD = [
    (dict(logits=[[0.0]]), TypeError, "must be a tensor"),
    (dict(logits=LOGITS.double()), TypeError, "float32 or bfloat16 or float16, got float64"),
    (dict(logits=LOGITS[0]), ValueError, r"shape \[R, V\], got \[8\]"),
    (dict(logits=LOGITS[:, :0]), ValueError, "at least one token"),
    (dict(logits=LOGITS.t()), ValueError, "adjacent tokens"),
    (dict(temperature=-0.1), ValueError, "at least 0, got -0.1"),
    (dict(temperature=math.nan), ValueError, "finite"),
    (dict(temperature=math.inf), ValueError, "finite"),
    (dict(temperature="1"), TypeError, "temperature"),
    (dict(temperature=1e300), ValueError, "at most 1e[+]30"),
    (dict(temperature=1.0, seeds=0, positions=2**70), ValueError, "positions must fit into 64 bits"),
    (dict(temperature=1.0), ValueError, "needs seeds and positions"),
    (dict(temperature=1.0, seeds=0.5, positions=0), TypeError, "seed must be an integer"),
    (dict(temperature=1.0, seeds=2**64, positions=0), ValueError, "64 bits"),
    (
        dict(temperature=1.0, seeds=torch.zeros(3, dtype=torch.int64), positions=0),
        ValueError,
        r"shape \[2\], got \[3\]",
    ),
    (dict(temperature=1.0, seeds=0, positions=torch.zeros(2)), TypeError, "positions must be an integer"),
    (dict(temperature=1.0, seeds=0, positions=0, step="1"), TypeError, "step"),
    (dict(suppress=torch.zeros(8)), TypeError, "suppress must be bool"),
    (dict(suppress=torch.zeros(7, dtype=torch.bool)), ValueError, r"shape \[8\], got \[7\]"),
    (dict(begin_suppress=torch.zeros(8)), TypeError, "begin_suppress must be bool"),
    (dict(begin_suppress=torch.zeros(7, dtype=torch.bool)), ValueError, r"shape \[8\], got \[7\]"),
    (dict(statistics="hot"), ValueError, "one of raw, tempered, got 'hot'"),
    (dict(top_k=0), ValueError, "top_k must be at least 1"),
    (dict(top_k=2.0), TypeError, "top_k must be an integer"),
    (dict(top_k=True), TypeError, "top_k must be an integer"),
    (dict(top_p=0.0), ValueError, "above 0 and at most 1, got 0.0"),
    (dict(top_p=1.5), ValueError, "above 0 and at most 1"),
    (dict(top_p=math.nan), ValueError, "above 0 and at most 1"),
    (dict(top_p="0.9"), TypeError, "top_p must be a number"),
    (dict(rows=torch.zeros(2, dtype=torch.int32)), TypeError, "rows must be int64"),
    (dict(rows=torch.zeros(1, 2, dtype=torch.int64)), ValueError, "rows must have shape"),
    (dict(count=torch.zeros(2, dtype=torch.int64)), ValueError, "count must have one element"),
    (dict(impl="cuda"), ValueError, "impl must be one of"),
    (dict(unknown=1), TypeError, "unknown"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        gumbel_argmax(**{"logits": LOGITS, **arguments})
