"""Gumbel-argmax with confidence in Triton: one pass over the vocabulary, split into chunks of a fixed width.

The result of a row does not depend on its batch: chunks have the same width whatever the number of rows, each is one
program, and a second kernel combines the chunks of a row in a fixed order. Few rows fill the chip all the same.

Within a chunk a thread owns a column: of a block of 512 tokens, which 128 / GROUP threads read, four groups of GROUP
adjacent tokens, 128 apart; then the same of a later block. A group is what a thread loads at once, four tokens or
eight. So a thread has whole tiles of the draw (:mod:`dllm_kernels.draw`), and the pass exchanges nothing between
threads. Of its column a thread keeps
    peak   max l
    shift  -peak log2 e, rounded, at most 2^16
    s      sum 2^d, d = l log2 e + shift in one rounding
    t      sum 2^d d
    bound  max over its tiles of what an upper bound of their scores is computed from

Exact pruning. What decides the draw is specified bit for bit, and costs more than all else. A bound of a tile's score
needs approximate exponentials only, those of the statistics where their temperature is that of the draw, and no
logarithm (`bounds_triton.py`). So scores are computed for the column with the highest bound, and for further ones only
while their bound reaches the best score: 1.1 columns of 128 on average for normal logits. At temperature 0 the bound is
the logit itself.

Statistics. The error of d is relative to d, small where the probability is large, but 2^d and d are those of a peak
moved by the rounding of shift. That is at most 2^-9, is computed exactly and taken back once per chunk. Where the peak
of a chunk is further from 0, or +inf, the chunk is read again for gaps l - peak. Statistics of softmax(l / T) have
log2 e / T for log2 e.

Instructions decide at half the shapes, and are counted: `python -m benchmarks.static_report.instructions`.

Logits may arrive in slices of the vocabulary: chunks are numbered over the whole of it, so the bits are the same.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels import _checks, _tuning
from dllm_kernels.draw_triton import tile_of, tile_token, tile_words, word_of
from dllm_kernels.gumbel_argmax.bounds_triton import bound_of_scores, tile_bound
from dllm_kernels.gumbel_argmax.columns_triton import (
    beaten,
    best_score,
    column_logits,
    column_tokens,
    first_of_ties,
    larger_max,
    largest,
    lowest,
)
from dllm_kernels.gumbel_argmax.combine_triton import (
    _FIRST,
    _MOMENT,
    _NO_TOKEN,
    _SCORE,
    _SECOND,
    _SUM,
    _TOP,
    Partial,
    combine,
)
from dllm_kernels.logits_triton import (
    HIGHEST,
    INF,
    LOG2_E,
    adjacent,
    hide,
    load_logits,
    load_unbounded,
    statistics_temperature,
    stride,
)

_LN2 = tl.constexpr(0.6931471805599453)
_FAR = tl.constexpr(2.0**16)
_LOWEST = tl.constexpr(-256.0)  # 2^-256 is 0 in float32


@triton.jit(do_not_specialize=["R", "first_chunk", "chunks", "stride_tr", "stride_sr", "stride_pr", "stride_ir"])
def _chunk_kernel(
    x_ptr,
    temperature_ptr,
    seeds_ptr,
    positions_ptr,
    step_ptr,
    suppress_ptr,
    begin_suppress_ptr,
    floor_ptr,
    rows_ptr,
    count_ptr,
    partial_ptr,
    partial_token_ptr,
    partial_tile_ptr,
    likeliest_ptr,
    softcap,
    R,
    V,
    first_chunk,
    chunks,
    stride_xr,
    stride_tr,
    stride_sr,
    stride_pr,
    stride_ir,
    BLOCK_V: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN_V: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    HAS_SUPPRESS: tl.constexpr,
    HAS_BEGIN_SUPPRESS: tl.constexpr,
    HAS_FLOOR: tl.constexpr,
    TEMPERED: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_COUNT: tl.constexpr,
):
    # 16 bytes, where rows are aligned and options leave so many registers: 64 keep half an SM's threads at work
    PLAIN: tl.constexpr = EVEN_V and not (HAS_SUPPRESS or HAS_BEGIN_SUPPRESS or HAS_FLOOR or HAS_SOFTCAP)
    GROUP: tl.constexpr = 8 if PLAIN and x_ptr.dtype.element_ty.primitive_bitwidth == 16 else 4
    n, chunk = tl.program_id(0), tl.program_id(1)
    if HAS_COUNT:
        if n >= tl.load(count_ptr):
            return
    row = n.to(tl.int64)
    if HAS_ROWS:
        row = tl.load(rows_ptr + n)
        if (row < 0) | (row >= R):
            return

    # from here on tokens are counted from the start of the chunk
    x_ptr += row * stride_xr + chunk * BLOCK_V
    chunk += first_chunk
    first_v = chunk * BLOCK_V
    size_v = V - first_v
    if HAS_SUPPRESS:
        suppress_ptr += first_v
    if HAS_BEGIN_SUPPRESS:
        begin_suppress_ptr += first_v
    T, seed, position, step = 0.0, 0, 0, 0
    if HAS_NOISE:
        T = tl.load(temperature_ptr + row * stride_tr)
        seed = tl.load(seeds_ptr + row * stride_sr)
        position = tl.load(positions_ptr + row * stride_pr)
        step = tl.load(step_ptr + row * stride_ir)
    draws = T > 0
    T = statistics_temperature(T)
    floor = -INF
    if HAS_FLOOR:
        floor = tl.load(floor_ptr + n)
    rate, draw_rate = LOG2_E, tl.div_rn(LOG2_E, T)
    if TEMPERED:
        rate = draw_rate

    offs_c = tl.arange(0, COLUMNS)
    peak = tl.full([COLUMNS], -INF, tl.float32)
    top = tl.full([COLUMNS], -INF, tl.float32)
    bound = tl.full([COLUMNS], -INF, tl.float32)
    shift = tl.full([COLUMNS], _FAR, tl.float32)
    s = tl.zeros([COLUMNS], tl.float32)
    t = tl.zeros([COLUMNS], tl.float32)
    size = tl.minimum(BLOCK_V, size_v)
    WIDTH: tl.constexpr = 4 * GROUP * COLUMNS
    tl.static_assert(BLOCK_V % WIDTH == 0, "a chunk is read in whole passes")
    whole = size // WIDTH * WIDTH
    # tiles that share a Philox block are so many tokens apart; a thread has them in turns, where a chunk is wide enough
    SPAN: tl.constexpr = 4096
    tl.static_assert(SPAN % WIDTH == 0, "the tiles of a pass have the same word of their Philox blocks")
    TURNS: tl.constexpr = 4 if HAS_NOISE and BLOCK_V % (4 * SPAN) == 0 else 1
    PARTS: tl.constexpr = SPAN // WIDTH if TURNS == 4 else 1
    for span in range(0, whole, TURNS * PARTS * WIDTH):
        for part in range(PARTS):
            begin = span + part * WIDTH
            words = _words(first_v + begin, seed, position, step, COLUMNS, GROUP, HAS_NOISE)
            own = (first_v + begin) // SPAN
            for turn in range(tl.minimum(tl.cdiv(whole - begin, SPAN), TURNS)):
                start = begin + turn * SPAN
                peak, top, bound, shift, s, t = _pass(
                    *(x_ptr, suppress_ptr, begin_suppress_ptr, start, size_v),
                    *(floor, softcap, rate, draw_rate, T, words, (own + turn) % 4),
                    *(peak, top, bound, shift, s, t),
                    *(COLUMNS, GROUP, HAS_NOISE, HAS_SUPPRESS, HAS_BEGIN_SUPPRESS, HAS_FLOOR, TEMPERED, HAS_SOFTCAP),
                    HAS_END=False,
                )
    for start in range(whole, size, WIDTH):  # what is left, once or not at all: some loads lie past the end
        words = _words(first_v + start, seed, position, step, COLUMNS, GROUP, HAS_NOISE)
        peak, top, bound, shift, s, t = _pass(
            *(x_ptr, suppress_ptr, begin_suppress_ptr, start, size_v),
            *(floor, softcap, rate, draw_rate, T, words, (first_v + start) // SPAN % 4),
            *(peak, top, bound, shift, s, t),
            *(COLUMNS, GROUP, HAS_NOISE, HAS_SUPPRESS, HAS_BEGIN_SUPPRESS, HAS_FLOOR, TEMPERED, HAS_SOFTCAP),
            HAS_END=True,
        )

    # the two likeliest: the peak, and the better of its column's runner-up and the other columns' peaks
    peak = tl.minimum(peak, HIGHEST)
    first = largest(peak)
    column = lowest(offs_c, peak == first)
    offs_first = column_tokens(0, offs_c, COLUMNS, GROUP)
    logits = (x_ptr, suppress_ptr, size_v, floor, softcap)
    l, offs_v = column_logits(logits, column, BLOCK_V, COLUMNS, GROUP, HAS_SUPPRESS, HAS_FLOOR, HAS_SOFTCAP)
    if HAS_BEGIN_SUPPRESS:
        l = hide(l, begin_suppress_ptr, offs_v, size_v)
    token = lowest(offs_v, l == first)
    second = larger_max(tl.where(offs_v == token, -INF, l), tl.where(offs_c == column, -INF, peak))

    # the first token with the largest logit: known of the column of the peak, which others may equal
    highest, likeliest = first, token
    if HAS_NOISE:
        tied = (peak == first) & (peak > -INF) & (offs_c != column)
        if HAS_BEGIN_SUPPRESS:
            top = tl.minimum(top, HIGHEST)
            highest, likeliest = largest(top), tl.full([], _NO_TOKEN, tl.int32)
            tied = (top == highest) & (top > -INF)
        likeliest = first_of_ties(
            *(logits, tied, highest, likeliest),
            *(BLOCK_V, COLUMNS, GROUP, HAS_SUPPRESS, HAS_FLOOR, HAS_SOFTCAP),
        )

    # the best score: of columns that a bound of theirs lets win
    if HAS_NOISE or HAS_BEGIN_SUPPRESS:
        best, token = tl.full([], -INF, tl.float32), tl.full([], _NO_TOKEN, tl.int32)
        reach = tl.where(draws, bound_of_scores(bound, T), tl.minimum(top, HIGHEST))
        reach = tl.where(top > -INF, reach, -INF)
    else:  # of the column of the peak it is known
        best = first
        reach = tl.where(beaten(peak, offs_first, best, token) | (offs_c == column), -INF, peak)
    best, token = best_score(
        *(logits, draws, T, seed, position, step, first_v, reach, best, token),
        *(BLOCK_V, COLUMNS, GROUP, HAS_NOISE, HAS_SUPPRESS, HAS_FLOOR, HAS_SOFTCAP),
    )

    # the sums; where the peak is far from 0 the chunk is read again
    far = tl.abs(first * rate) > _FAR
    total, moment = _sums_at_peak(s, t, shift, first, rate, far)
    if far & (first > -INF):
        total, moment = 0.0, 0.0
        offs_w = tl.arange(0, GROUP * COLUMNS)
        for start in range(0, size, GROUP * COLUMNS):
            y = load_logits(
                x_ptr, suppress_ptr, start + offs_w, size_v, floor, HAS_SUPPRESS, HAS_FLOOR, softcap, HAS_SOFTCAP
            )
            if HAS_BEGIN_SUPPRESS:
                y = hide(y, begin_suppress_ptr, start + offs_w, size_v)
            d = tl.maximum((y - first) * rate, _LOWEST)
            total += tl.sum(tl.exp2(d), axis=0)
            moment += tl.sum(tl.exp2(d) * d, axis=0)

    out = n.to(tl.int64) * chunks + chunk
    stride_f = tl.num_programs(0).to(tl.int64) * chunks
    _store_fields(partial_ptr + out, stride_f, best, first, second, total, moment, highest, HAS_NOISE)
    tl.store(partial_token_ptr + out, tl.where(token < size_v, first_v + token, _NO_TOKEN))
    if HAS_NOISE:
        tl.store(likeliest_ptr + out, first_v + likeliest)
        offs_t = tl.arange(0, 16)
        offs_v = tl.where(token < size_v, token, 0) + tile_token(offs_t)
        l = load_logits(x_ptr, suppress_ptr, offs_v, size_v, floor, HAS_SUPPRESS, HAS_FLOOR, softcap, HAS_SOFTCAP)
        tl.store(partial_tile_ptr + out * 16 + offs_t, l)


@triton.jit
def _pass(
    x_ptr,
    suppress_ptr,
    begin_suppress_ptr,
    start,
    size_v,
    floor,
    softcap,
    rate,
    draw_rate,
    T,
    words,
    own,
    peak,
    top,
    bound,
    shift,
    s,
    t,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    HAS_SUPPRESS: tl.constexpr,
    HAS_BEGIN_SUPPRESS: tl.constexpr,
    HAS_FLOOR: tl.constexpr,
    TEMPERED: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_END: tl.constexpr,
):
    """What columns keep after four more groups: four loads are in flight, and `shift` changes once.

    `words` are those of the tiles' Philox blocks, and number `own` is the tiles'.
    """
    offs_c = tl.arange(0, COLUMNS)
    offs_0 = start + column_tokens(0, offs_c, COLUMNS, GROUP)[:, None] + tl.arange(0, GROUP)[None, :]
    offs_1, offs_2, offs_3 = offs_0 + 128, offs_0 + 256, offs_0 + 384
    l0 = load_unbounded(
        x_ptr, suppress_ptr, offs_0, size_v, floor, HAS_SUPPRESS, HAS_FLOOR, HAS_END, softcap, HAS_SOFTCAP
    )
    l1 = load_unbounded(
        x_ptr, suppress_ptr, offs_1, size_v, floor, HAS_SUPPRESS, HAS_FLOOR, HAS_END, softcap, HAS_SOFTCAP
    )
    l2 = load_unbounded(
        x_ptr, suppress_ptr, offs_2, size_v, floor, HAS_SUPPRESS, HAS_FLOOR, HAS_END, softcap, HAS_SOFTCAP
    )
    l3 = load_unbounded(
        x_ptr, suppress_ptr, offs_3, size_v, floor, HAS_SUPPRESS, HAS_FLOOR, HAS_END, softcap, HAS_SOFTCAP
    )
    z0, z1, z2, z3 = l0, l1, l2, l3  # what the statistics see
    top = tl.maximum(top, _highest(l0, l1, l2, l3))
    new_peak = top
    if HAS_BEGIN_SUPPRESS:
        z0 = hide(l0, begin_suppress_ptr, offs_0, size_v, HAS_END)
        z1 = hide(l1, begin_suppress_ptr, offs_1, size_v, HAS_END)
        z2 = hide(l2, begin_suppress_ptr, offs_2, size_v, HAS_END)
        z3 = hide(l3, begin_suppress_ptr, offs_3, size_v, HAS_END)
        new_peak = tl.maximum(peak, _highest(z0, z1, z2, z3))

    new_shift = tl.minimum(-(new_peak * rate), _FAR)
    d0, d1 = _exponent(z0, rate, new_shift), _exponent(z1, rate, new_shift)
    d2, d3 = _exponent(z2, rate, new_shift), _exponent(z3, rate, new_shift)
    e0, e1, e2, e3 = tl.exp2(d0), tl.exp2(d1), tl.exp2(d2), tl.exp2(d3)
    fall = new_shift - shift
    shrink = tl.exp2(fall)
    moment = tl.fma(e3, d3, tl.fma(e2, d2, tl.fma(e1, d1, e0 * d0)))
    total = _tile_sums(e0, e1, e2, e3)
    t = tl.fma(tl.fma(s, fall, t), shrink, tl.sum(moment, axis=1))
    s = tl.fma(s, shrink, tl.sum(total, axis=1))

    if HAS_NOISE:
        draw_shift = new_shift
        if HAS_BEGIN_SUPPRESS or not TEMPERED:
            if HAS_BEGIN_SUPPRESS or T != 1.0:  # other logits than the statistics', or another temperature
                draw_shift = tl.minimum(-(top * draw_rate), HIGHEST)
                e0 = tl.exp2(_exponent(l0, draw_rate, draw_shift))
                e1 = tl.exp2(_exponent(l1, draw_rate, draw_shift))
                e2 = tl.exp2(_exponent(l2, draw_rate, draw_shift))
                e3 = tl.exp2(_exponent(l3, draw_rate, draw_shift))
                total = _tile_sums(e0, e1, e2, e3)
        bound = tl.maximum(bound, tile_bound(total, word_of(own, *words), draw_shift))
    return new_peak, top, bound, new_shift, s, t


@triton.jit
def _words(first_v, seed, position, step, COLUMNS: tl.constexpr, GROUP: tl.constexpr, HAS_NOISE: tl.constexpr):
    """The words of the Philox blocks of the tiles that each thread reads from token `first_v` on: [COLUMNS, tiles]."""
    w0, w1, w2, w3 = 0, 0, 0, 0
    if HAS_NOISE:
        offs_t = tl.arange(0, GROUP // 4)[None, :] * 4
        offs_v = first_v + column_tokens(0, tl.arange(0, COLUMNS), COLUMNS, GROUP)[:, None] + offs_t
        w0, w1, w2, w3, _ = tile_words(seed, tile_of(offs_v), position, step)
    return w0, w1, w2, w3


@triton.jit
def _tile_sums(e0, e1, e2, e3):
    """Sums over each tile of a column, [COLUMNS, tiles]."""
    e = (e0 + e1) + (e2 + e3)
    return tl.sum(tl.reshape(e, [e.shape[0], e.shape[1] // 4, 4]), axis=2)


@triton.jit
def _sums_at_peak(s, t, shift, first, rate, far):
    """sum 2^d and sum 2^d d of all columns, with d from the chunk's peak `first` on; not where it is `far` from 0.

    The rounding of the peak's exponent moved all d by `low`, which is computed exactly and taken back.
    """
    lift = tl.where(far, _FAR, -(first * rate))
    low = tl.where(far, 0.0, tl.fma(first, rate, lift))
    fall = lift - shift
    moment = tl.sum(tl.fma(s, fall, t) * tl.exp2(fall), axis=0)
    total = tl.sum(s * tl.exp2(fall), axis=0)
    x = -_LN2 * low
    back = 1.0 + x * (1.0 + 0.5 * x)  # 2^-low
    return total * back, (moment - low * total) * back


@triton.jit
def _store_fields(out_ptr, stride_f, best, first, second, total, moment, highest, HAS_NOISE: tl.constexpr):
    """Store the numbers of a chunk, a lane each."""
    offs_f = tl.arange(0, 8)
    fields = tl.where(offs_f == _SCORE, best, -INF)
    fields = tl.where(offs_f == _FIRST, first, fields)
    fields = tl.where(offs_f == _SECOND, second, fields)
    fields = tl.where(offs_f == _SUM, total, fields)
    fields = tl.where(offs_f == _MOMENT, moment, fields)
    if HAS_NOISE:
        fields = tl.where(offs_f == _TOP, highest, fields)
    tl.store(out_ptr + offs_f * stride_f, fields, mask=offs_f <= (_TOP if HAS_NOISE else _MOMENT))


@triton.jit
def _exponent(l, rate, shift):
    """The exponent of 2 of each weight, l rate + shift in one rounding; _LOWEST for NaN and -inf."""
    return tl.maximum(tl.fma(l, rate, shift[:, None]), _LOWEST)


@triton.jit
def _highest(l0, l1, l2, l3):
    """Per column the largest of four groups [COLUMNS, 4]; NaN only where all are."""
    return tl.max(tl.maximum(tl.maximum(l0, l1), tl.maximum(l2, l3)), axis=1)


class _Options(NamedTuple):
    """What is the same for all slices; tensors as in the public function, per-row ones of any stride."""

    temperature: Tensor | None = None
    seeds: Tensor | None = None
    positions: Tensor | None = None
    step: Tensor | None = None
    suppress: Tensor | None = None
    begin_suppress: Tensor | None = None
    tempered: bool = False
    softcap: float | None = None
    floor: Tensor | None = None
    rows: Tensor | None = None
    count: Tensor | None = None


def gumbel_argmax(
    logits: Tensor,
    temperature: Tensor | None = None,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    step: Tensor | None = None,
    suppress: Tensor | None = None,
    begin_suppress: Tensor | None = None,
    tempered: bool = False,
    softcap: float | None = None,
    floor: Tensor | None = None,
    rows: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """token, log_prob, margin, neg_entropy, lse, argmax of the chosen rows.

    Arguments as in the public function, already checked; per-row ones are [R], of any stride, and `floor` is [N]:
    logits below it count as -inf. Two launches; temporaries of 24 bytes per row and chunk, and 72 more where there is
    noise (:mod:`dllm_kernels._tuning` has the width of a chunk).
    """
    n = len(logits) if rows is None else len(rows)
    noise, hidden = (temperature, seeds, positions, step), (adjacent(suppress), adjacent(begin_suppress))
    options = _Options(*noise, *hidden, tempered, softcap, floor, adjacent(rows), count)
    return _reduce([(0, logits)], n, *logits.shape, logits.device, options)


def over_slices(
    slices: Iterable[tuple[int, Tensor]],
    n: int,
    vocab_size: int,
    device: torch.device,
    temperature: Tensor | None = None,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    step: Tensor | None = None,
    suppress: Tensor | None = None,
    begin_suppress: Tensor | None = None,
    tempered: bool = False,
    softcap: float | None = None,
    count: Tensor | None = None,
    consume: Callable[[int, Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, ...]:
    """The results of :func:`gumbel_argmax`, bit for bit, on logits [n, vocab_size] that arrive in slices.

    `slices` yields (first token, logits [n, width]), ascending, without gaps; first tokens are multiples of a chunk's
    width (``_tuning.gumbel_argmax(vocab_size)[0].BLOCK_V``). The memory of a slice may be used again by what is put on
    the stream after the next is asked for. `consume`, if given, is called for each slice once its reduction is on the
    stream, and may overwrite it: with the first token, the logits and the largest logit of each row and chunk, float32
    [n, chunks], which no row beyond `count` has. The other arguments as in the public function, per-row ones [n]. One
    launch for each slice and one at the end; temporaries of 24 bytes per row and chunk, and 72 more where there is
    noise.
    """
    noise, hidden = (temperature, seeds, positions, step), (adjacent(suppress), adjacent(begin_suppress))
    options = _Options(*noise, *hidden, tempered, softcap, count=count)
    return _reduce(slices, n, n, vocab_size, device, options, consume)


def _reduce(
    slices: Iterable[tuple[int, Tensor]],
    n: int,
    R: int,
    vocab_size: int,
    device: torch.device,
    options: _Options,
    consume: Callable[[int, Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, ...]:
    shape, num_warps = _tuning.gumbel_argmax(vocab_size)
    chunks = triton.cdiv(vocab_size, shape.BLOCK_V)
    partial = Partial.empty(n, chunks, device, noise=options.temperature is not None)
    with torch.cuda.device_of(partial.token):
        if n:
            for first, logits in _checks.slices(slices, R, vocab_size, shape.BLOCK_V):
                _reduce_slice(first, logits, vocab_size, partial, options, shape, num_warps)
                if consume is not None:
                    begin, end = first // shape.BLOCK_V, triton.cdiv(first + logits.shape[1], shape.BLOCK_V)
                    consume(first, logits, partial.numbers[_FIRST.value, :, begin:end])
        noise = (options.temperature, options.seeds, options.positions, options.step)
        return combine(partial, R, *noise, options.begin_suppress, options.tempered, options.rows, options.count)


def _reduce_slice(
    first: int,
    logits: Tensor,
    vocab_size: int,
    partial: Partial,
    options: _Options,
    shape: _tuning.GumbelArgmaxShape,
    num_warps: int,
) -> None:
    """The partial results of the chunks that begin in a slice."""
    n, chunks = partial.token.shape
    _chunk_kernel[(n, triton.cdiv(logits.shape[1], shape.BLOCK_V))](
        x_ptr=logits,
        temperature_ptr=options.temperature,
        seeds_ptr=options.seeds,
        positions_ptr=options.positions,
        step_ptr=options.step,
        suppress_ptr=options.suppress,
        begin_suppress_ptr=options.begin_suppress,
        floor_ptr=options.floor,
        rows_ptr=options.rows,
        count_ptr=options.count,
        partial_ptr=partial.numbers,
        partial_token_ptr=partial.token,
        partial_tile_ptr=partial.tile,
        likeliest_ptr=partial.likeliest,
        softcap=1.0 if options.softcap is None else options.softcap,
        R=len(logits),
        V=vocab_size,
        first_chunk=first // shape.BLOCK_V,
        chunks=chunks,
        stride_xr=logits.stride(0),
        stride_tr=stride(options.temperature),
        stride_sr=stride(options.seeds),
        stride_pr=stride(options.positions),
        stride_ir=stride(options.step),
        BLOCK_V=shape.BLOCK_V,
        COLUMNS=shape.COLUMNS,
        EVEN_V=vocab_size % 16 == 0,
        HAS_NOISE=options.temperature is not None,
        HAS_SUPPRESS=options.suppress is not None,
        HAS_BEGIN_SUPPRESS=options.begin_suppress is not None,
        HAS_FLOOR=options.floor is not None,
        TEMPERED=options.tempered,
        HAS_SOFTCAP=options.softcap is not None,
        HAS_ROWS=options.rows is not None,
        HAS_COUNT=options.count is not None,
        num_warps=num_warps,
        num_stages=shape.num_stages,
        enable_fp_fusion=False,  # the bits of the noise are multiplications and additions, each rounded
    )
