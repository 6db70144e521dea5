"""The Triton kernels against the reference: on a GPU where there is one, else in Triton's interpreter.

An interpreted program costs tenths of a second whatever its width, so shapes are chosen by the number of programs.
"""

import math

import pytest
import torch

from dllm_kernels import _impl, draw, gumbel_argmax, linear_gumbel_argmax, philox, transfer_tokens, truncation_floor
from dllm_kernels.testing import (
    STATISTICS,
    assert_head_within_budget,
    assert_within_budget,
    draw_scores,
    largest_allowed,
    make_head,
    make_logits,
    make_noise,
    poisoned_memory,
    true_linear_gumbel_argmax,
)
from tests.triton_device import DEVICE, NO_TRITON, here

if NO_TRITON:
    pytest.skip(NO_TRITON, allow_module_level=True)

import triton
import triton.language as tl

from dllm_kernels import _tuning, philox_triton
from dllm_kernels.gumbel_argmax import bounds_triton
from dllm_kernels.linear_gumbel_argmax import triton as head_kernels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = math.inf, math.nan
MASK = 9

# In the interpreter numpy remarks on inf and NaN.
remarks = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def fast(logits, **arguments):
    with poisoned_memory():
        got = gumbel_argmax(logits.to(DEVICE), **here(arguments), impl="triton")
    return type(got)(*(field.cpu() for field in got))


def reference(logits, **arguments):
    return gumbel_argmax(logits, **arguments, impl="reference")


def same_bits(a, b):
    return all(torch.equal(x.view(torch.int32), y.view(torch.int32)) for x, y in zip(a, b, strict=True))


@pytest.fixture
def narrow(monkeypatch):
    """Chunks of 1024 tokens, read 512 at a time, some in 16 bits at once: 1600 tokens are two, the last one ragged."""
    shape = _tuning.GumbelArgmaxShape(BLOCK_V=1024, COLUMNS=32, num_stages=1)
    monkeypatch.setattr(_tuning, "_GUMBEL_ARGMAX", {"default": shape})


# the noise, bit for bit


@triton.jit
def _words_kernel(out_ptr, seed_ptr, position_ptr, step_ptr, first_block, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    seed, position, step = tl.load(seed_ptr), tl.load(position_ptr), tl.load(step_ptr)
    w0, w1, w2, w3 = philox_triton.words(seed, first_block + offs, position, step, STREAM)
    tl.store(out_ptr + offs, w0.to(tl.int64))
    tl.store(out_ptr + BLOCK + offs, w1.to(tl.int64))
    tl.store(out_ptr + 2 * BLOCK + offs, w2.to(tl.int64))
    tl.store(out_ptr + 3 * BLOCK + offs, w3.to(tl.int64))


@triton.jit
def _noise_kernel(noise_ptr, w_ptr, partner_ptr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    w, partner = tl.load(w_ptr + offs).to(tl.uint32), tl.load(partner_ptr + offs).to(tl.uint32)
    tl.store(noise_ptr + offs, philox_triton.gumbel_from_words(w, partner))


@triton.jit
def _exp_kernel(exp_ptr, x_ptr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(exp_ptr + offs, philox_triton.exp_float32(tl.load(x_ptr + offs)))


@triton.jit
def _bound_kernel(bound_ptr, x_ptr, w_ptr, T, TILES: tl.constexpr):
    """Of tiles [TILES, 16], as gumbel_argmax's pass computes it."""
    offs_t = tl.arange(0, TILES)
    x = tl.load(x_ptr + offs_t[:, None] * 16 + tl.arange(0, 16)[None, :])
    word = tl.load(w_ptr + offs_t).to(tl.uint32)
    rate = tl.div_rn(1.4426950408889634, T)
    shift = tl.minimum(-(tl.max(x, axis=1) * rate), 3e38)
    total = tl.sum(tl.exp2(tl.maximum(tl.fma(x, rate, shift[:, None]), -256.0)), axis=1)
    bound = bounds_triton.tile_bound(total[:, None], word[:, None], shift)
    tl.store(bound_ptr + offs_t, bounds_triton.bound_of_scores(bound, T))


@triton.jit
def _log_kernel(log_ptr, x_ptr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(log_ptr + offs, philox_triton.log_float32(tl.load(x_ptr + offs)))


@pytest.mark.parametrize("stream", range(4))
@pytest.mark.parametrize(
    ("seed", "position", "step", "first_block"),
    [
        (0, 0, 0, 0),
        (-1, 2**32 - 1, 2**32 - 1, 2**31 - 100),  # every counter at its end
        (-(2**63), 2**32 + 5, -3, 1000),  # counters are taken modulo 2^32
        (0x299F31D0A4093822, 4095, 127, 37000),
    ],
)
def test_words(seed, position, step, first_block, stream):
    address = [torch.tensor(value) for value in (seed, position, step)]
    got = torch.full((4, 64), -1, device=DEVICE)
    _words_kernel[(1,)](got, *(x.to(DEVICE) for x in address), first_block, STREAM=stream, BLOCK=64)
    expected = philox.words(address[0], first_block + torch.arange(64), *address[1:], stream=stream)
    assert torch.equal(got.cpu(), torch.stack(expected))


def test_noise_from_any_words():
    # the ends, both sides of the change of formula, every power of two and its neighbours, and random words
    edges = {0, 1, 2**32 - 1, *(2**i + j for i in range(32) for j in (-1, 0, 1))}
    edges = torch.tensor(sorted(edges))
    draw = torch.randint(0, 2**32, (2, 2**14), generator=torch.Generator().manual_seed(0))
    w = torch.cat([edges.repeat(3), draw[0]])
    partner = torch.cat([torch.zeros_like(edges), torch.full_like(edges, 2**32 - 1), edges.flip(0), draw[1]])
    size = len(w) // 1024 * 1024 + 1024
    w, partner = (torch.nn.functional.pad(x, (0, size - len(x))) for x in (w, partner))
    noise = torch.full((size,), NAN, device=DEVICE)
    _noise_kernel[(size // 1024,)](noise, w.to(DEVICE), partner.to(DEVICE), BLOCK=1024, enable_fp_fusion=False)
    assert same_bits([noise.cpu()], [philox.gumbel_from_words(w, partner)])


@pytest.mark.parametrize("T", [1e-30, 1e-3, 0.3, 1.0, 7.0, 1e30])
@pytest.mark.parametrize(("center", "width"), [(0, 3), (0, 200), (-1e9, 1), (60000, 30), (1e30, 1e29)])
def test_no_tile_has_a_score_above_its_bound(T, center, width):
    generator = torch.Generator().manual_seed(0)
    x = center + width * torch.randn(2048, 16, generator=generator)
    w, partner = torch.randint(0, 2**32, (2, 2048), generator=generator)
    edges = torch.tensor([0, 1, 2**28, *(2**i - 1 for i in range(1, 33))])
    w[: len(edges)] = edges
    x[1::7, 1:], x[2::7, 5] = -INF, -INF
    bound = torch.full((2048,), NAN, device=DEVICE)
    _bound_kernel[(1,)](bound, x.to(DEVICE), w.to(DEVICE), T, TILES=2048, enable_fp_fusion=False)
    bound, score = bound.cpu(), draw.tile_score(x, torch.tensor(T), philox.gumbel_from_words(w, partner))
    assert (bound >= score).all()
    if abs(center) / T < 1e30:
        E_is_nearly_U = (w >= 2**8) & (w < 2**30)
        assert (bound - score)[E_is_nearly_U].mean() < 0.3 * T + 2.0**-19 * score.abs().max()


def test_exp():
    """The ends, what rounds to each exponent, and numbers below which the result is 0."""
    halves, ends = -torch.arange(128) * math.log(2) / 2, torch.tensor([0.0, -87, -87.00001, -1e30, -INF])
    x = torch.cat([-torch.rand(4000) * 90, halves, ends])
    x = torch.nn.functional.pad(x, (0, 4608 - len(x)))
    got = torch.full_like(x, NAN).to(DEVICE)
    _exp_kernel[(9,)](got, x.to(DEVICE), BLOCK=512, enable_fp_fusion=False)
    assert same_bits([got.cpu()], [philox.exp_float32(x)])


def test_log():
    x = torch.cat([torch.rand(4000) * 4, 2.0 ** torch.arange(-64, 32), torch.ones(1), 1 + torch.tensor([-1, 1]) * 6e-8])
    x = torch.nn.functional.pad(x.clamp_min(1e-30), (0, 4608 - len(x)), value=1.0)
    got = torch.full_like(x, NAN).to(DEVICE)
    _log_kernel[(9,)](got, x.to(DEVICE), BLOCK=512, enable_fp_fusion=False)
    assert same_bits([got.cpu()], [philox.log_float32(x)])


# gumbel_argmax


# one token, one group of four and around it, around one pass (2048 tokens, or 4096), two chunks as they come
@pytest.mark.covering(2)
@pytest.mark.parametrize("vocab_size", [1, 2, 3, 7, 2049, 4112, 16400])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_as_tuned(vocab_size, dtype, temperature):
    logits, noise = make_logits(2, vocab_size, dtype=dtype), make_noise(2, temperature)
    got = fast(logits, **noise)
    assert torch.equal(got.token, reference(logits, **noise).token)
    assert_within_budget(got, logits, **{**noise, "temperature": torch.full((2,), temperature)})


@pytest.mark.parametrize("statistics", ["raw", "tempered"])
def test_rows_of_other_temperatures_have_the_bits_that_they_have_alone(statistics):
    """Also at T = 0, where a call with that one number draws no noise and compiles another kernel."""
    logits, head = make_logits(2, 4112), make_head(2, 32, 300)
    noise = make_noise(2, torch.tensor([0.0, 1.0])) | dict(statistics=statistics)
    together = fast(logits, **noise), fast_head(*head, **noise)
    for row, T in enumerate((0.0, 1.0)):
        one = {name: x[row : row + 1] if isinstance(x, torch.Tensor) else x for name, x in noise.items()}
        one["temperature"] = T
        alone = fast(logits[row : row + 1], **one), fast_head(head[0][row : row + 1], *head[1:], **one)
        for many, single in zip(together, alone, strict=True):
            assert all(torch.equal(a[row : row + 1], b) for a, b in zip(many, single, strict=True))


# from flat to saturated; rows at a temperature where the noise hides the logits, and where it breaks near ties only
@pytest.mark.parametrize(
    ("scale", "dtype"),
    [
        (0.0, torch.float32),
        (1.0, torch.float32),
        (30.0, torch.float32),
        (1.0, torch.bfloat16),
        (30.0, torch.float16),
    ],
)
def test_many_chunks(narrow, scale, dtype):
    temperature = torch.tensor([1.0, 50.0, 1e-3, 0.0, -1.0, NAN])
    logits, noise = make_logits(6, 1600, scale=scale, dtype=dtype), make_noise(6, temperature)
    got = fast(logits, **noise)
    assert torch.equal(got.token, reference(logits, **noise).token)
    assert_within_budget(got, logits, **noise)


# one chunk, two, one token less and one more, and 16 of them, which leaves rows of 16 bits aligned
@pytest.mark.covering(1)
@pytest.mark.parametrize("vocab_size", [1008, 1023, 1024, 1025, 1040, 2047, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_chunks_end(narrow, vocab_size, dtype):
    logits, noise = make_logits(3, vocab_size, dtype=dtype), make_noise(3, torch.tensor([1.0, 0.0, 1.0]))
    logits[:, -1] = torch.tensor([-5.0, 30.0, 30.0])  # of two rows the last token wins
    got = fast(logits, **noise)
    assert torch.equal(got.token, reference(logits, **noise).token)
    assert got.token[1:].tolist() == [vocab_size - 1] * 2
    assert_within_budget(got, logits, **noise)


@remarks
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_chunks_of_nothing_and_a_last_one_of_anything(narrow, dtype, temperature):
    """Of three chunks the last, which is ragged, holds +inf, NaN or all there is."""
    logits = make_logits(4, 2128, dtype=dtype)
    logits[0, 2100], logits[0, 2101] = INF, NAN
    logits[1, :2048] = -INF
    logits[1, 2120] = NAN
    logits[2, 1024:2048] = -INF
    logits[2, 2048:] = NAN
    logits[3, :1024] = NAN
    logits[3, 1024:] = -INF
    noise = make_noise(4, temperature)
    got, expected = fast(logits, **noise), reference(logits, **noise)
    assert torch.equal(got.token, expected.token) and got.token[3] == -1
    assert got.token[0] == 2100 and got.token[1] >= 2048 and got.token[2] < 1024
    for name in STATISTICS:
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_scores_in_two_chunks(narrow, dtype):
    """Of the same logits in two chunks the first is taken, at temperature 0 and where the noise is less than an ulp."""
    logits = make_logits(2, 2048, dtype=dtype)
    logits[:, 1024:] = logits[:, :1024]
    temperature = torch.tensor([0.0, 1e-20])
    got = fast(logits, **make_noise(2, temperature))
    assert torch.equal(got.token, logits[:, :1024].argmax(-1)) and got.margin.tolist() == [0.0] * 2


# where a rounding of l log2 e is a quarter; beyond any sum; masks of the lowest number beside them
@remarks
@pytest.mark.parametrize("size", [3e6, -3e6, 1e30, torch.finfo(torch.float32).min])
def test_logits_far_from_0(narrow, size):
    logits = size + make_logits(3, 1040, scale=3.0)
    logits[1, :1024] = torch.finfo(torch.float32).min  # a chunk far below the other
    logits[2, 500:] = make_logits(1, 540)[0]
    noise = make_noise(3, torch.tensor([1.0, 0.0, 0.5]))
    assert torch.equal(fast(logits, **noise).token, reference(logits, **noise).token)  # scores are rounded to a quarter
    assert_within_budget(fast(logits), logits)


# where T g is lost in l or l in T g, where the line of the bound is level, and beyond float32
@remarks
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e6])
def test_bounds_hold_at_every_temperature(narrow, scale):
    temperature = torch.tensor([1e-30, 1e-12, 1e-3, 1e27, 3e38])
    logits, noise = make_logits(5, 200, scale=1.0) * scale, make_noise(5, temperature)
    logits[:, 100:] = torch.finfo(torch.float32).min if scale else 0.0
    assert torch.equal(fast(logits, **noise).token, reference(logits, **noise).token)


def test_what_is_measured_does_not_depend_on_what_is_drawn(narrow):
    logits = make_logits(2, 1600)
    assert same_bits(fast(logits)[2:], fast(logits, **make_noise(2, 1.0))[2:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_greedy_is_argmax(narrow, dtype):
    logits = make_logits(3, 1600, scale=1.0, dtype=dtype).float().round(decimals=1).to(dtype)  # ties
    assert torch.equal(fast(logits).token, logits.argmax(-1))


def test_ties_go_to_the_lowest_token(narrow):
    logits = torch.zeros(5, 1600)
    logits[1, [1500, 701, 1200]] = 1.0  # in two chunks
    logits[2, [700, 130, 517]] = 1.0  # in three columns of a chunk; the lowest token in the second pass
    logits[3, [1030, 1029]] = 1.0  # in one group
    logits[4, [512, 4]] = 1.0  # column 0, second pass, against column 1, first pass
    expected = [0, 701, 130, 1029, 4]
    assert fast(logits).token.tolist() == expected
    zero = dict(temperature=torch.zeros(5), seeds=3, positions=0)
    assert fast(logits, **zero).token.tolist() == expected


def test_suppressed_tokens_count_nowhere(narrow):
    logits, noise = make_logits(3, 1600), make_noise(3, torch.tensor([1.0, 0.0, 0.5]))
    suppress = torch.zeros(1600, dtype=torch.bool)
    suppress[logits.argmax(-1)] = True
    suppress[900:1100] = True
    got, hidden = fast(logits, **noise, suppress=suppress), logits.masked_fill(suppress, -INF)
    assert torch.equal(got.token, reference(hidden, **noise).token) and not suppress[got.token].any()
    assert_within_budget(got, hidden, **noise)
    assert fast(logits, suppress=torch.ones(1600, dtype=torch.bool)).token.tolist() == [-1] * 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_chosen_rows_and_count(narrow, temperature):
    logits, noise = make_logits(5, 1200), make_noise(5, temperature)
    full = fast(logits, **noise)
    rows = torch.tensor([[4, 8], [0, 8], [3, 8], [3, 8], [5, 8], [-1, 8], [2, 8]])[:, 0]  # of any stride
    got = fast(logits, **noise, rows=rows, count=torch.tensor(6, dtype=torch.int32))
    assert same_bits([field[:4] for field in got], [field[rows[:4]] for field in full])
    assert got.token[4:].tolist() == [-1] * 3
    assert [field[4:].tolist() for field in got[1:]] == [[-INF] * 3, [0.0] * 3, [-INF] * 3, [-INF] * 3, [-1] * 3]


@pytest.mark.parametrize("count", [-1, 0, 2, 99])
def test_count(count):
    logits = make_logits(3, 40)
    expected = logits.argmax(-1).where(torch.arange(3) < count, -1)
    assert torch.equal(fast(logits, count=torch.tensor([count])).token, expected)


def test_a_row_is_the_same_alone_and_in_any_batch(narrow):
    logits, noise = make_logits(4, 1600), make_noise(4, torch.tensor([1.0, 0.0, 0.7, 2.0]))
    together = fast(logits, **noise)
    for row in (0, 3):
        alone = fast(logits[row : row + 1], **{name: x[row : row + 1] for name, x in noise.items()})
        assert same_bits(alone, [field[row : row + 1] for field in together])


@remarks
@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_values_that_are_no_numbers(narrow, temperature, dtype):
    logits = torch.full((6, 1500), -1e4, dtype=dtype)
    logits[0, 1400], logits[0, 1300] = NAN, 9.0  # a NaN is never chosen
    logits[1] = -INF  # nothing to choose
    logits[2] = NAN
    logits[3] = -INF  # all probability on one token, one chunk without any
    logits[3, 1100] = 3.0
    logits[4, [1200, 5]] = INF  # the largest finite number, twice
    logits[5] = torch.finfo(dtype).min  # finite, if barely
    got = fast(logits, **make_noise(6, temperature))
    assert got.token[:5].tolist() == [1300, -1, -1, 1100, 5]
    for row in (0, 3):
        assert got.log_prob[row] == 0 and got.margin[row] == 1 and abs(got.neg_entropy[row]) < 1e-30
    for row in (1, 2):
        assert got.log_prob[row] == got.lse[row] == got.neg_entropy[row] == -INF and got.margin[row] == 0
    assert got.log_prob[4].item() == pytest.approx(-math.log(2)) and got.margin[4] == 0
    assert got.token[5] >= 0 and got.log_prob[5].item() == pytest.approx(-math.log(1500))
    assert not any(field.isnan().any() for field in got[1:])


@remarks
def test_an_infinite_temperature_in_a_tensor_still_draws_a_token(narrow):
    logits = make_logits(2, 1100)
    logits[:, :1050] = -INF
    got = fast(logits, **make_noise(2, torch.tensor([INF, 1e38])))
    assert ((got.token >= 1050) & (got.token < 1100)).all() and not got.log_prob.isnan().any()


# what samplers ask for besides; a cold row, and ways to say 0
TEMPERATURES = torch.tensor([1.0, 0.0, 0.3, NAN])


@pytest.mark.covering(1)
@remarks
@pytest.mark.parametrize("statistics", ["raw", "tempered"])
@pytest.mark.parametrize("noisy", [True, False])
def test_begin_suppressed_tokens_may_be_chosen_and_count_nowhere(narrow, statistics, noisy):
    logits = make_logits(4, 1601)
    options = dict(statistics=statistics, **(make_noise(4, TEMPERATURES) if noisy else {}))
    begin_suppress = torch.zeros(1601, dtype=torch.bool)
    begin_suppress[reference(logits, **options).token[:2]] = True
    begin_suppress[900:1100] = True
    options["begin_suppress"] = begin_suppress
    got = fast(logits, **options)
    assert torch.equal(got.token, reference(logits, **options).token)
    assert torch.equal(got.log_prob == -INF, begin_suppress[got.token]) and (got.log_prob == -INF).sum() >= 2
    if noisy or statistics == "raw":
        assert_within_budget(got, logits, **options)
    options["begin_suppress"] = torch.ones(1601, dtype=torch.bool)
    nothing = fast(logits, **options)
    assert torch.equal(nothing.token, got.token) and nothing.margin.tolist() == [0.0] * 4
    assert nothing.log_prob.tolist() == nothing.neg_entropy.tolist() == nothing.lse.tolist() == [-INF] * 4


@remarks
@pytest.mark.parametrize("scale", [0.3, 30.0])
def test_statistics_of_what_is_drawn_from(narrow, scale):
    logits, noise = make_logits(4, 1600, scale=scale), make_noise(4, TEMPERATURES)
    got = fast(logits, **noise, statistics="tempered")
    assert torch.equal(got.token, reference(logits, **noise).token)
    assert_within_budget(got, logits, **noise, statistics="tempered")


@remarks
def test_statistics_at_temperatures_beyond_sense(narrow):
    logits = make_logits(4, 1100)
    logits[:, 500:] = -INF
    got = fast(logits, **make_noise(4, torch.tensor([1e-45, 1e-38, 1e30, INF])), statistics="tempered")
    assert not any(field.isnan().any() for field in got[1:])
    assert got.token.max() < 500 and got.log_prob[:2].tolist() == [0.0] * 2 and got.margin[:2].tolist() == [1.0] * 2
    assert got.neg_entropy[2:].tolist() == pytest.approx([-math.log(500)] * 2)


@remarks
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_top_k_and_top_p_cut_off_counts_nowhere(narrow, dtype):
    logits, noise = make_logits(4, 1500, dtype=dtype), make_noise(4, TEMPERATURES)
    suppress = torch.arange(1500) % 7 == 5
    for cut in (dict(top_k=20, statistics="raw"), dict(top_k=300, top_p=0.9, statistics="tempered")):
        got = fast(logits, **noise, **cut, suppress=suppress)
        assert torch.equal(got.token, reference(logits, **noise, **cut, suppress=suppress).token)
        assert_within_budget(got, logits, **noise, **cut, suppress=suppress)


@remarks
def test_slices_give_the_bits_of_the_whole(narrow):
    from dllm_kernels.gumbel_argmax import triton as kernels

    logits, noise = make_logits(4, 2100), make_noise(4, TEMPERATURES)
    flags = dict(suppress=torch.arange(2100) % 11 == 3, begin_suppress=torch.arange(2100) % 5 == 2)
    whole = fast(logits, **noise, **flags, statistics="tempered")

    def slices():
        buffer = torch.empty(4, 1024, device=DEVICE)
        for first in (0, 1024, 2048):
            width = min(1024, 2100 - first)
            buffer.fill_(NAN)
            buffer[:, :width] = logits[:, first : first + width]
            yield first, buffer[:, :width]

    options = here({**noise, **flags, "tempered": True})
    with poisoned_memory():
        got = kernels.over_slices(slices(), 4, 2100, DEVICE, **options)
    assert same_bits([field.cpu() for field in got], whole)
    half = logits[:, :2096].bfloat16()  # groups of eight
    with poisoned_memory():
        got = kernels.over_slices([(i, half[:, i : i + 1024].to(DEVICE)) for i in (0, 1024, 2048)], 4, 2096, DEVICE)
    assert same_bits([field.cpu() for field in got], fast(half))
    with pytest.raises(ValueError, match="multiples of 1024"):
        kernels.over_slices([(0, logits[:, :600]), (600, logits[:, 600:])], 4, 2100, DEVICE)


# truncation_floor


def fast_floor(logits, **arguments):
    with poisoned_memory():
        return truncation_floor(logits.to(DEVICE), **here(arguments), impl="triton").cpu()


# one token, one group of four, one pass over 4096 tokens and one more
@pytest.mark.covering(1)
@remarks
@pytest.mark.parametrize("vocab_size", [1, 2, 3, 50, 97, 4096, 8193])
@pytest.mark.parametrize("dtype", DTYPES)
def test_floor(vocab_size, dtype):
    logits = make_logits(3, vocab_size, dtype=dtype)
    T = torch.tensor([0.0, 0.3, 2.0])
    for cut in (dict(top_p=0.9), dict(top_k=20), dict(top_k=40, top_p=0.8)):
        expected = truncation_floor(logits, temperature=T, **cut, impl="reference")
        assert torch.equal(fast_floor(logits, temperature=T, **cut), expected)


@remarks
def test_floor_of_values_that_are_no_numbers():
    logits = torch.full((5, 150), -1e4)
    logits[0, 7], logits[0, 140] = NAN, 5.0
    logits[1] = -INF
    logits[2] = NAN
    logits[3], logits[3, 110] = -INF, 3.0
    logits[4, [3, 120]] = INF
    largest = torch.finfo(torch.float32).max
    assert fast_floor(logits, top_p=0.5).tolist() == [5.0, -INF, -INF, 3.0, largest]
    assert fast_floor(logits, top_k=40).tolist() == [-1e4, -INF, -INF, 3.0, -1e4]
    assert fast_floor(logits, top_k=1, top_p=0.99).tolist() == [5.0, -INF, -INF, 3.0, largest]


@remarks
def test_floor_of_logits_of_every_magnitude():
    logits = torch.cat([2.0 ** torch.arange(-126, 128), torch.zeros(1), -(2.0 ** torch.arange(-126, 128))])[None]
    for k in (1, 100, 255, 508):
        assert fast_floor(logits, top_k=k).item() == logits[0].sort(descending=True).values[k - 1].item()
    T = torch.tensor([1e-38, 1e30])
    assert torch.equal(
        fast_floor(logits.expand(2, -1), temperature=T, top_p=0.5),
        truncation_floor(logits.expand(2, -1), temperature=T, top_p=0.5, impl="reference"),
    )


@remarks
def test_floor_of_chosen_rows():
    logits, T = make_logits(5, 300), torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0])
    options = dict(temperature=T, top_p=0.8, top_k=60, suppress=torch.arange(300) % 3 == 0)
    full = fast_floor(logits, **options)
    assert torch.equal(full, truncation_floor(logits, **options, impl="reference"))
    rows = torch.tensor([[4, 8], [0, 8], [5, 8], [-1, 8], [2, 8]])[:, 0]
    got = fast_floor(logits, **options, rows=rows, count=torch.tensor([4]))
    assert got.tolist() == [full[4], full[0], -INF, -INF, -INF]
    assert fast_floor(logits[2:3], **{**options, "temperature": 2.0})[0] == full[2]
    assert fast_floor(torch.empty(0, 5), top_k=2).shape == (0,)


def test_empty_and_strided():
    assert [field.shape for field in fast(torch.empty(0, 5))] == [(0,)] * 6
    assert fast(make_logits(2, 5), rows=torch.empty(0, dtype=torch.int64)).lse.shape == (0,)
    nothing = fast(torch.empty(0, 5), **make_noise(0, 1.0), rows=torch.tensor([0, -1]))
    assert nothing.token.tolist() == [-1, -1] and nothing.lse.tolist() == [-INF, -INF]
    wide, noise = make_logits(6, 900), make_noise(6, torch.full((6,), 0.5))
    every_other = {name: x[::2] for name, x in noise.items()}
    view = wide[::2, 100:777]
    assert torch.equal(fast(view, **every_other).token, reference(view, **every_other).token)
    one_row = wide.to(DEVICE)[:1, 3:800].expand(3, 797)  # a stride of 0
    got = gumbel_argmax(one_row, impl="triton").token
    assert torch.equal(got, one_row.argmax(-1))


@remarks
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softcap_and_argmax(narrow, dtype):
    """Bit for bit the reference's tokens: ties by saturation, in other columns and chunks, and of rounded logits."""
    logits = make_logits(5, 1100, scale=40.0, dtype=dtype)
    logits[0, 5], logits[0, 7], logits[1], logits[2, [900, 133, 20]] = NAN, INF, -INF, 300.0
    noise = make_noise(5, torch.tensor([0.4, 1.0, 0.8, 5.0, 0.0]))
    begin = torch.arange(1100) % 2 == 0
    for options in ({}, dict(softcap=30.0), dict(softcap=3.0, statistics="tempered", begin_suppress=begin)):
        got = fast(logits, **noise, **options)
        expected = gumbel_argmax(logits, **noise, **options, impl="reference")
        assert torch.equal(got.token, expected.token) and torch.equal(got.argmax, expected.argmax)
        for name in STATISTICS:
            torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=1e-5, atol=1e-5)
    assert torch.equal(fast(logits, softcap=30.0).argmax, gumbel_argmax(logits, softcap=30.0, impl="reference").token)


def test_explicit_triton_on_a_cpu_needs_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="CUDA tensors"):
        gumbel_argmax(torch.zeros(1, 2), impl="triton")


# linear_gumbel_argmax

# The interpreter multiplies bfloat16 as if it were something else.
HEAD_DTYPES = [torch.float32, torch.float16] + ([] if _impl.interpreting() else [torch.bfloat16])
PLANS = pytest.mark.parametrize("plan", ["fused", "slices"])


def fast_head(hidden, weight, bias, **arguments):
    with poisoned_memory():
        head = (x if x is None else x.to(DEVICE) for x in (hidden, weight, bias))
        got = linear_gumbel_argmax(*head, **here(arguments), impl="triton")
    return type(got)(*(field.cpu() for field in got))


def take(plan, monkeypatch):
    """All rows fused; or slices of 1024 tokens and at most 64 rows."""
    monkeypatch.setattr(_tuning, "_FUSED_ROWS", {"default": 10**6 if plan == "fused" else 0})
    if plan == "slices":
        monkeypatch.setattr(head_kernels, "CACHED_BYTES", 1)


# rows: one, in each block of rows and in two; columns: one, ragged, several blocks; tokens: around one tile (128), two
@pytest.mark.parametrize(("rows", "width", "vocab_size"), [(1, 1, 1), (3, 40, 97), (17, 64, 130), (66, 70, 300)])
@pytest.mark.parametrize("dtype", HEAD_DTYPES)
def test_fused_head(monkeypatch, rows, width, vocab_size, dtype):
    take("fused", monkeypatch)
    head = make_head(rows, width, vocab_size, dtype=dtype)
    noise = make_noise(rows, torch.tensor([1.0, 0.0, 0.5, NAN, 50.0, -1.0]).repeat(11)[:rows])
    got, truth = fast_head(*head, **noise), true_linear_gumbel_argmax(*head, **noise)
    assert torch.equal(got.token, truth.token)
    assert_head_within_budget(got, *head, **noise)
    greedy, truth = fast_head(*head[:2], None), true_linear_gumbel_argmax(*head[:2])
    assert torch.equal(greedy.token, truth.token)
    assert_head_within_budget(greedy, *head[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_head_by_slices(narrow, monkeypatch, dtype):
    take("slices", monkeypatch)
    head, noise = make_head(3, 40, 1100, dtype=dtype), make_noise(3, torch.tensor([1.0, 0.0, 0.5]))
    got = fast_head(*head, **noise)
    assert torch.equal(got.token, fast(torch.nn.functional.linear(*head), **noise).token)
    assert_head_within_budget(got, *head, **noise)


@PLANS
@pytest.mark.parametrize("dtype", HEAD_DTYPES)
def test_a_head_with_a_softcap(narrow, monkeypatch, plan, dtype):
    """Logits are rounded to the dtype before it, in either plan."""
    take(plan, monkeypatch)
    head, noise = make_head(3, 40, 1100, scale=25.0, dtype=dtype), make_noise(3, torch.tensor([1.0, 0.0, 0.5]))
    got = fast_head(*head, **noise, softcap=10.0)
    expected = linear_gumbel_argmax(*head, **noise, softcap=10.0, impl="reference")
    assert torch.equal(got.token, expected.token) and torch.equal(got.argmax, expected.argmax)
    for name in STATISTICS:
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=1e-5, atol=1e-5)


@remarks
@PLANS
def test_a_head_with_every_option(narrow, monkeypatch, plan):
    take(plan, monkeypatch)
    (hidden, weight, bias), blind = make_head(20, 24, 1100), make_head(20, 24, 1, seed=1)[0]
    rows = torch.tensor([[19, 8], [0, 8], [3, 8], [3, 8], [20, 8], [-1, 8], [7, 8]])[:, 0]  # of any stride
    noise = make_noise(7, torch.tensor([1.0, 0.0, 5.0, 5.0, 1.0, 1.0, 2.0]))  # one for each result row
    suppress, begin = torch.arange(1100) % 3 == 0, torch.arange(1100) % 5 == 0
    options = dict(rows=rows, count=torch.tensor(6), suppress=suppress, begin_suppress=begin, statistics="tempered")
    guided = dict(unconditional=blind, cfg_scale=1.5)
    for every in (options, options | guided):
        got = fast_head(hidden, weight, bias, **noise, **every)
        expected = linear_gumbel_argmax(hidden, weight, bias, **noise, **every, impl="reference")
        assert torch.equal(got.token, expected.token) and got.token[4:].tolist() == [-1] * 3
        assert got.token[2] != got.token[3]  # the same hidden row, other noise
        for name in STATISTICS:
            torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=1e-5, atol=1e-5)


@PLANS
def test_a_head_prefers_the_lowest_tile_of_equal_scores(monkeypatch, plan):
    """Scores near 1e10 are all rounded alike. Token 128 is of tile 0 and of the first program, token 36 of tile 9."""
    take(plan, monkeypatch)
    hidden, weight = torch.ones(2, 1), torch.full((700, 1), 1e10)
    suppress = torch.ones(700, dtype=torch.bool).index_fill(0, torch.tensor([36, 128, 129, 600]), False)
    noise = make_noise(2, torch.tensor([1.0, 0.0]))
    for impl in ("reference", "triton"):
        got = linear_gumbel_argmax(
            hidden.to(DEVICE), weight.to(DEVICE), **here(noise), suppress=suppress.to(DEVICE), impl=impl
        )
        assert got.token.tolist() == [128, 36]


def test_a_head_cut_by_top_k_and_top_p(narrow, monkeypatch):
    monkeypatch.setattr(head_kernels, "SLICE_BYTES", 1)  # 16 rows at a time
    head, noise = make_head(18, 24, 300), make_noise(18, torch.linspace(0, 2, 18))
    cut = dict(top_k=5, top_p=0.9)
    got, expected = fast_head(*head, **noise, **cut), linear_gumbel_argmax(*head, **noise, **cut, impl="reference")
    assert torch.equal(got.token, expected.token)
    assert_head_within_budget(got, *head, **noise, **cut)


@pytest.mark.parametrize("count", [-1, 0, 17, 99])
def test_count_of_a_fused_head(monkeypatch, count):
    monkeypatch.setattr(_tuning, "_FUSED_HEAD", {"default": ((16, 256, 4),)})  # two blocks of rows
    head = make_head(20, 8, 40)
    expected = linear_gumbel_argmax(*head, impl="reference").token.where(torch.arange(20) < count, -1)
    assert torch.equal(fast_head(*head, count=torch.tensor([count])).token, expected)


def test_a_row_of_a_fused_head_is_the_same_alone_and_in_any_batch(monkeypatch):
    """On a GPU bit for bit, in a block of 16 rows, one of 32 and two; the interpreter multiplies by numpy, whose bits
    differ."""
    take("fused", monkeypatch)
    (hidden, weight, bias), noise = make_head(64, 96, 300), make_noise(64, torch.linspace(0, 2, 64))

    def some(n):
        return fast_head(hidden[:n], weight, bias, **{name: x[:n] for name, x in noise.items()})

    alone, few, all_of_them = some(1), some(20), some(64)
    assert torch.equal(few.token, all_of_them.token[:20]) and torch.equal(alone.token, few.token[:1])
    if not _impl.interpreting():
        assert same_bits(few, [field[:20] for field in all_of_them])
        assert same_bits(alone, [field[:1] for field in few])


def test_sums_of_a_tile_do_not_depend_on_the_block_of_rows():
    x = torch.rand(128, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    sums = []
    for BLOCK_R in (16, 32):
        got = torch.full((32,), NAN, device=DEVICE)
        _sum_kernel[(32 // BLOCK_R,)](got, x, BLOCK_R=BLOCK_R)
        sums.append(got)
    assert same_bits(sums[:1], sums[1:])
    torch.testing.assert_close(sums[0], x.sum(0))


@triton.jit
def _sum_kernel(out_ptr, x_ptr, BLOCK_R: tl.constexpr):
    offs_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    x = tl.load(x_ptr + tl.arange(0, 128)[:, None] * 32 + offs_r[None, :])
    tl.store(out_ptr + offs_r, head_kernels._sum(x, 128, BLOCK_R))


@remarks
@PLANS
def test_a_head_of_values_that_are_no_numbers(narrow, monkeypatch, plan):
    take(plan, monkeypatch)
    hidden, weight, bias = make_head(6, 4, 1100)
    hidden[1, 1], hidden[2] = NAN, INF
    weight[7] = NAN
    weight[1050, 2], bias[9] = INF, -INF
    for noise in ({}, make_noise(6, torch.tensor([0.0, 1.0, 1.0, 1.0, INF, 0.0]))):
        got = fast_head(hidden, weight, bias, **noise)
        expected = gumbel_argmax(torch.nn.functional.linear(hidden, weight, bias), **noise, impl="reference")
        assert torch.equal(got.token, expected.token) and got.token[1] == -1
        assert not any(field.isnan().any() for field in got[1:])
        assert [field[1].item() for field in got[1:]] == [-INF, 0.0, -INF, -INF, -1]


@PLANS
def test_a_head_without_rows(monkeypatch, plan):
    take(plan, monkeypatch)
    assert [field.shape for field in fast_head(*make_head(0, 4, 30))] == [(0,)] * 6
    got = fast_head(*make_head(0, 4, 30), rows=torch.tensor([0, -1]))
    assert got.token.tolist() == [-1, -1] and got.lse.tolist() == [-INF, -INF]
    nothing = fast_head(*make_head(3, 4, 30), rows=torch.empty(0, dtype=torch.int64))
    assert nothing.lse.shape == (0,)


# transfer_tokens


def compare_transfer(canvas, proposals, confidence, **arguments):
    """Run the kernel and the reference on the same canvas; returns the number committed."""
    expected = canvas.clone()
    committed = transfer_tokens(expected, proposals, confidence, mask_id=MASK, impl="reference", **arguments)
    with poisoned_memory():
        on_device = canvas.to(DEVICE)
        got = transfer_tokens(
            on_device, proposals.to(DEVICE), confidence.to(DEVICE), mask_id=MASK, impl="triton", **here(arguments)
        )
    assert torch.equal(on_device.cpu(), expected) and torch.equal(got.cpu(), committed)
    return committed


def random_case(seed, window, distinct=8):
    """Few distinct confidences, so that ties are the rule; windows that stick out of the canvas on both sides."""
    draw = torch.Generator().manual_seed(seed)

    def integers(low, high, *size):
        return torch.randint(low, high, size, generator=draw)

    batch, columns = int(integers(1, 4)), int(integers(1, 2 * window + 2))
    canvas = torch.where(integers(0, 3, batch, columns) > 0, MASK, integers(0, MASK, batch, columns))
    confidence = integers(-1, distinct, batch, window) / distinct
    for special in (NAN, -INF, INF, -0.0):
        confidence[integers(0, 12, batch, window) == 0] = special
    where = dict(start=integers(-4, columns + 2, batch), length=integers(-1, window + 3, batch))
    return canvas, integers(-1, 9, batch, window), confidence, where, integers(-1, window + 2, batch)


# windows: one column, below, at and above the narrowest block, several warps
@pytest.mark.covering(1)
@pytest.mark.parametrize("window", [1, 5, 32, 33, 200])
@pytest.mark.parametrize("rule", [{}, dict(threshold=0.375), dict(factor=1.25), dict(budget=1.3)], ids=str)
def test_transfer(window, rule):
    for seed in range(8):
        canvas, proposals, confidence, where, k = random_case(seed, window)
        confidence = confidence - 0.75 if "budget" in rule else confidence
        compare_transfer(canvas, proposals, confidence, **where, **rule, **({"k": k} if seed % 2 or not rule else {}))


def test_transfer_spends_its_budget_to_the_unit():
    """Entropies over eleven orders of magnitude, some equal; budgets at the sums themselves and a unit below."""
    draw = torch.Generator().manual_seed(0)
    sure = -(10.0 ** (torch.rand(3, 100, generator=draw) * 11 - 10)).float()
    sure[:, ::3] = sure[:, :1]
    canvas, proposals = torch.full(sure.shape, MASK), torch.zeros(sure.shape, dtype=torch.int64)
    units = ((-sure[0]).double() * 2**32).long().sort().values.cumsum(0)
    for spent in units[torch.tensor([0, 30, 60, 99])].tolist():
        for budget in (spent, max(spent - 1, 0)):
            compare_transfer(canvas.clone(), proposals, sure, budget=budget * 2.0**-32)
    assert compare_transfer(canvas, proposals, sure, budget=INF).tolist() == [100] * 3


def test_transfer_of_the_widest_window():
    canvas, proposals, confidence, where, _ = random_case(0, 8192, distinct=1000)
    where["start"], where["length"] = torch.tensor(-4), 8192
    for rule in (dict(k=3000), dict(threshold=0.9), dict(factor=40.0), dict(k=2, budget=1000.0)):
        compare_transfer(canvas, proposals, confidence, **where, **rule)


def test_transfer_at_the_bar_of_factor():
    """Confidences equal to 1 - f / (r + 1) as float32 computes it: one rounding otherwise, and the count differs."""
    for factor in (0.3, 0.7, 1.0, 1.9):
        r = torch.arange(1, 31)
        bar = 1 - torch.full(r.shape, factor) / (r + 1)
        for confidence in (bar, bar.nextafter(torch.tensor(-INF)), bar.where(r < 20, bar - 1e-7)):
            confidence = confidence.sort(descending=True).values[None]
            compare_transfer(torch.full((1, 30), MASK), torch.zeros(1, 30).long(), confidence, factor=factor)
        exact = compare_transfer(
            torch.full((1, 30), MASK), torch.zeros(1, 30).long(), bar.max().expand(1, 30), factor=factor
        )
        assert exact == 30


@pytest.mark.parametrize("rule", [dict(k=0), dict(k=-5), dict(k=2**40), dict(threshold=2.0), dict(threshold=-INF)])
def test_transfer_at_the_ends(rule):
    confidence = torch.tensor([[-INF, 0.5, NAN, 0.5, INF, 0.0, -0.0]])
    proposals = torch.arange(7)[None]
    n = compare_transfer(torch.full((1, 7), MASK), proposals, confidence, **rule)
    expected = {"k": min(max(rule.get("k", 0), 0), 7), "threshold": 1 if rule.get("threshold") == 2.0 else 7}
    assert n.item() == expected[next(iter(rule))]


def test_transfer_with_nothing_to_do():
    for batch, columns, window in [(0, 4, 4), (2, 0, 4), (2, 4, 0)]:
        for rule in (dict(k=2), dict(threshold=0.5), dict(factor=1.0), dict(budget=1.0)):
            shape = (batch, window)
            n = compare_transfer(
                torch.full((batch, columns), MASK), torch.zeros(shape).long(), torch.zeros(shape), **rule
            )
            assert n.tolist() == [0] * batch
    no_mask = compare_transfer(torch.zeros(1, 4).long(), torch.zeros(1, 4).long(), torch.zeros(1, 4), threshold=0.0)
    assert no_mask.tolist() == [0]


def test_transfer_through_strides_changes_nothing_else():
    wide = torch.full((3, 12), MASK, device=DEVICE)
    proposals = torch.arange(16, device=DEVICE).reshape(4, 4).t()[:3]
    confidence = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)).t()[:3].to(DEVICE)
    expected = wide.clone()
    for canvas, impl in ((wide, "triton"), (expected, "reference")):
        transfer_tokens(canvas[:, 2:8], proposals, confidence, mask_id=MASK, k=3, start=1, impl=impl)
    assert torch.equal(wide, expected) and (wide[:, :3] == MASK).all() and (wide[:, 7:] == MASK).all()


@pytest.mark.parametrize("mask_id", [0, 1, -7, 2**40])
def test_transfer_of_any_mask_id(mask_id):
    canvas = torch.tensor([[mask_id, 5, mask_id]], device=DEVICE)
    proposals, confidence = torch.full((1, 3), 3, device=DEVICE), torch.zeros(1, 3, device=DEVICE)
    assert transfer_tokens(canvas, proposals, confidence, mask_id=mask_id, k=9, impl="triton").tolist() == [2]
    assert canvas.tolist() == [[3, 5, 3]]


# natively only


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [30522, 50368, 126464])
def test_real_vocabularies(vocab_size, dtype):
    for scale in (0.5, 3.0, 30.0):
        temperature = torch.tensor([0.0, 0.3, 1.0, 1.0, 1.0, 2.0, 50.0, NAN])
        logits, noise = make_logits(8, vocab_size, scale=scale, dtype=dtype), make_noise(8, temperature)
        got = fast(logits, **noise)
        assert torch.equal(got.token, reference(logits, **noise).token)
        assert_within_budget(got, logits, **noise)


# one block, ModernBERT-large's; a few rows, LLaDA's; by slices, the last one ragged; by whole rows
@pytest.mark.gpu
@pytest.mark.parametrize("cut", [{}, dict(top_k=50, top_p=0.95)], ids=["all", "cut"])
@pytest.mark.parametrize(("rows", "width", "vocab_size"), [(64, 1024, 50368), (7, 4096, 126464), (1024, 1024, 50368)])
def test_real_heads(rows, width, vocab_size, cut):
    hidden, weight, bias = (x.cuda() for x in make_head(rows, width, vocab_size, dtype=torch.bfloat16))
    noise = here(make_noise(rows, torch.linspace(0, 2, rows)))
    linear_gumbel_argmax(hidden, weight, bias, **noise, **cut, impl="triton")  # compiles
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    got = linear_gumbel_argmax(hidden, weight, bias, **noise, **cut, impl="triton")
    assert torch.cuda.max_memory_allocated() - before < 64e6
    logits = torch.nn.functional.linear(hidden.double(), weight.double(), bias.double())
    rounded = torch.nn.functional.linear(hidden, weight, bias)
    error = largest_allowed((rounded.double() - logits).cpu(), 0.0)  # twice what plain PyTorch's logits are off by
    score = draw_scores(logits, **noise)
    behind = score.amax(-1) - score.gather(-1, got.token[:, None])[:, 0]
    exact = linear_gumbel_argmax(hidden, weight, bias, **noise, **cut, impl="reference")
    print(f"{(got.token == exact.token).float().mean():.1%} of {rows} tokens as with float32 logits")
    if not cut:
        assert (behind <= 2 * error).all() and (got.lse - logits.logsumexp(-1)).abs().max() <= error


@pytest.mark.gpu
def test_a_weight_beyond_int32():
    weight = torch.zeros(2**18 + 300, 2**13, dtype=torch.bfloat16, device="cuda")
    weight[-1, -1] = 1.0
    hidden = torch.ones(1, 2**13, dtype=torch.bfloat16, device="cuda")
    assert linear_gumbel_argmax(hidden, weight, impl="triton").token.tolist() == [len(weight) - 1]
    assert linear_gumbel_argmax(hidden.expand(80, -1), weight, impl="triton").token.tolist() == [len(weight) - 1] * 80


@pytest.mark.gpu
def test_rows_times_vocabulary_beyond_int32():
    vocab_size = 126464
    rows = 2**31 // vocab_size + 5
    logits = torch.randn(rows, vocab_size, dtype=torch.bfloat16, device="cuda")
    noise = dict(temperature=1.0, seeds=7, positions=torch.arange(rows, device="cuda"))
    got = gumbel_argmax(logits, **noise, impl="triton")
    last = gumbel_argmax(logits[-3:].clone(), **{**noise, "positions": noise["positions"][-3:]}, impl="triton")
    assert same_bits([field[-3:] for field in got], last)
    assert torch.equal(gumbel_argmax(logits, impl="triton").token[-3:], logits[-3:].argmax(-1))


@pytest.mark.gpu
def test_nothing_is_read_back_to_the_host():
    logits, noise = make_logits(4, 5000).cuda(), here(make_noise(4, torch.ones(4)))
    rows, count = torch.arange(4, device="cuda"), torch.tensor(3, device="cuda")
    canvas, k = torch.full((4, 32), MASK, device="cuda"), torch.full((4,), 2, device="cuda")
    proposals, confidence = torch.zeros_like(canvas), torch.rand(4, 32, device="cuda")
    few, many, weight = (torch.randn(n, 64, device="cuda") for n in (4, 100, 5000))

    def step():
        gumbel_argmax(logits, **noise, rows=rows, count=count, impl="triton")
        transfer_tokens(canvas, proposals, confidence, mask_id=MASK, k=k, impl="triton")
        for head in ((few, weight), (many, weight)):
            linear_gumbel_argmax(*head, rows=rows, count=count, impl="triton")
            linear_gumbel_argmax(*head, unconditional=head[0], cfg_scale=1.0, top_k=5, impl="triton")

    step()  # compiling may wait for the device
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_replayed_graph_draws_fresh_numbers():
    logits, step = make_logits(4, 50368, scale=1.0).cuda(), torch.zeros(1, dtype=torch.int64, device="cuda")
    noise = dict(temperature=1.0, seeds=5, positions=torch.arange(4, device="cuda"))
    canvas = torch.full((1, 4), MASK, device="cuda")

    def once():
        drawn = gumbel_argmax(logits, **noise, step=step, impl="triton")
        transfer_tokens(canvas, drawn.token[None], drawn.log_prob[None], mask_id=MASK, k=2, impl="triton")
        return drawn

    once()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = once()
    tokens = []
    for i in range(4):
        step.fill_(i)
        canvas.fill_(MASK)
        graph.replay()
        assert same_bits(drawn, gumbel_argmax(logits, **noise, step=i, impl="triton"))
        assert (canvas != MASK).sum() == 2
        tokens.append(drawn.token.tolist())
    assert len(set(map(tuple, tokens))) == 4


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_device_of_the_tensors_is_used():
    logits = make_logits(2, 3000).to("cuda:1")
    with torch.cuda.device(0):
        assert torch.equal(gumbel_argmax(logits, impl="triton").token, logits.argmax(-1))
