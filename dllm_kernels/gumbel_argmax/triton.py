"""Gumbel-argmax with confidence in Triton: one pass over the vocabulary, split into chunks of a fixed width.

The result of a row does not depend on its batch: chunks have the same width whatever the number of rows, each is one
program, and a second kernel combines the chunks of a row in a fixed order. Few rows fill the chip all the same.

Within a chunk a thread owns a column c, the groups of four tokens 4 (COLUMNS g + c) + 0..3 for g = 0, 1, ...: loads
are contiguous, one Philox block serves the four tokens of a group, and the pass exchanges nothing between threads. Of
its column a thread keeps
    peak   max l
    m      max(peak, lowest float32), which keeps l - m free of inf - inf
    s      sum 2^d, d = (l - m) log2 e
    t      sum 2^d d
    bound  max over its tokens of an upper bound of the score l + T g

Exact pruning. The two logarithms of the noise cost more than everything else, and only the winner's matter. A bound of
the noise needs none (`gumbel_bound`), and rounding is monotone: fl(l + fl(T bound)) >= fl(l + fl(T g)). So scores are
computed for the column with the highest bound, and for further ones only while their bound reaches the best score: 1.05
to 1.2 columns of 128 on average for normal logits. At temperature 0 the bound is the logit itself.

Logits may arrive in slices of the vocabulary: chunks are numbered over the whole of it, so the bits are the same.

Statistics of softmax(l / T) are gathered at the gaps (l - m) / T rather than of quotients l / T: the error is then
relative to the gap, and small where the probability is large.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels import _checks, _tuning
from dllm_kernels.logits_triton import (
    HIGHEST,
    INF,
    LOG2_E,
    NOTHING,
    adjacent,
    exponent,
    hide,
    load_logits,
    statistics_temperature,
    stride,
)
from dllm_kernels.philox_triton import TOKEN_NOISE, gumbel_bound, gumbel_from_words, log_float32, words

_NO_TOKEN = tl.constexpr(2**31 - 1)
_LN2 = tl.constexpr(0.6931471805599453)

# what a chunk hands to the second kernel, float32 [6, N, chunks]
_SCORE, _LOGIT, _FIRST, _SECOND, _SUM, _MOMENT = (tl.constexpr(field) for field in range(6))
_FIELDS = 6


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
    HAS_NOISE: tl.constexpr,
    HAS_SUPPRESS: tl.constexpr,
    HAS_BEGIN_SUPPRESS: tl.constexpr,
    HAS_FLOOR: tl.constexpr,
    TEMPERED: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_COUNT: tl.constexpr,
):
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
        T = tl.where(T > 0, T, 0.0)
        seed = tl.load(seeds_ptr + row * stride_sr)
        position = tl.load(positions_ptr + row * stride_pr)
        step = tl.load(step_ptr + row * stride_ir)
    floor = -INF
    if HAS_FLOOR:
        floor = tl.load(floor_ptr + n)
    rate = 1.0
    if TEMPERED:
        rate = tl.div_rn(1.0, statistics_temperature(T))

    offs_c = tl.arange(0, COLUMNS)
    offs_g = offs_c[:, None] * 4 + tl.arange(0, 4)[None, :]
    peak = tl.full([COLUMNS], -INF, tl.float32)
    bound = tl.full([COLUMNS], -INF, tl.float32)
    m = tl.full([COLUMNS], -HIGHEST, tl.float32)
    s = tl.zeros([COLUMNS], tl.float32)
    t = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, tl.minimum(BLOCK_V, size_v), 16 * COLUMNS):
        # four groups at once: four loads in flight, one change of m
        l0 = load_logits(x_ptr, suppress_ptr, start + offs_g, size_v, floor, HAS_SUPPRESS, HAS_FLOOR)
        l1 = load_logits(x_ptr, suppress_ptr, start + 4 * COLUMNS + offs_g, size_v, floor, HAS_SUPPRESS, HAS_FLOOR)
        l2 = load_logits(x_ptr, suppress_ptr, start + 8 * COLUMNS + offs_g, size_v, floor, HAS_SUPPRESS, HAS_FLOOR)
        l3 = load_logits(x_ptr, suppress_ptr, start + 12 * COLUMNS + offs_g, size_v, floor, HAS_SUPPRESS, HAS_FLOOR)
        l = tl.reshape(tl.join(tl.join(l0, l1), tl.join(l2, l3)), [COLUMNS, 16])

        if HAS_BEGIN_SUPPRESS:
            if not HAS_NOISE:
                bound = tl.maximum(bound, tl.max(l, axis=1))
            z0 = hide(l0, begin_suppress_ptr, start + offs_g, size_v)
            z1 = hide(l1, begin_suppress_ptr, start + 4 * COLUMNS + offs_g, size_v)
            z2 = hide(l2, begin_suppress_ptr, start + 8 * COLUMNS + offs_g, size_v)
            z3 = hide(l3, begin_suppress_ptr, start + 12 * COLUMNS + offs_g, size_v)
            l = tl.reshape(tl.join(tl.join(z0, z1), tl.join(z2, z3)), [COLUMNS, 16])

        peak = tl.maximum(peak, tl.max(l, axis=1))
        new_m = tl.maximum(m, peak)
        fall = exponent(m - new_m, rate, TEMPERED)
        d = exponent(l - new_m[:, None], rate, TEMPERED)
        e = tl.exp2(d)
        t = (t + s * fall) * tl.exp2(fall) + tl.sum(e * d, axis=1)
        s = s * tl.exp2(fall) + tl.sum(e, axis=1)
        m = new_m

        if HAS_NOISE:
            block = (first_v + start) // 4 + offs_c
            bound = tl.maximum(bound, _score_bound(l0, T, seed, block, position, step))
            bound = tl.maximum(bound, _score_bound(l1, T, seed, block + COLUMNS, position, step))
            bound = tl.maximum(bound, _score_bound(l2, T, seed, block + 2 * COLUMNS, position, step))
            bound = tl.maximum(bound, _score_bound(l3, T, seed, block + 3 * COLUMNS, position, step))
    if not (HAS_NOISE or HAS_BEGIN_SUPPRESS):
        bound = peak

    # the best score: column by column, in the order of their bounds, for as long as one can still win
    offs_k = tl.arange(0, BLOCK_V // COLUMNS)
    best, token = tl.full([], -INF, tl.float32), tl.full([], _NO_TOKEN, tl.int32)
    highest, column = tl.max(bound, axis=0, return_indices=True)
    while highest > -INF:
        offs_v = _column_tokens(offs_k, column, COLUMNS)
        score = load_logits(x_ptr, suppress_ptr, offs_v, size_v, floor, HAS_SUPPRESS, HAS_FLOOR)
        if HAS_NOISE:
            score = _scores(score, T, seed, first_v // 4 + offs_v // 4, offs_v % 4, position, step)
        score_here, k = tl.max(score, axis=0, return_indices=True)  # ties: the first k, which is the lowest token
        token_here = _column_tokens(k, column, COLUMNS)
        better = (score_here > best) | ((score_here == best) & (token_here < token))
        best = tl.where(better, score_here, best)
        token = tl.where(better, token_here, token)
        beaten = (bound < best) | ((bound == best) & (4 * offs_c > token))  # 4 c: the lowest token of column c
        bound = tl.where(beaten | (offs_c == column), -INF, bound)
        highest, column = tl.max(bound, axis=0, return_indices=True)

    # the two likeliest: the peak, and the better of its column's runner-up and the other columns' peaks
    first, column = tl.max(peak, axis=0, return_indices=True)
    offs_v = _column_tokens(offs_k, column, COLUMNS)
    l = load_logits(x_ptr, suppress_ptr, offs_v, size_v, floor, HAS_SUPPRESS, HAS_FLOOR)
    if HAS_BEGIN_SUPPRESS:
        l = hide(l, begin_suppress_ptr, offs_v, size_v)
    k = tl.argmax(l, axis=0)
    runner_up = tl.max(tl.where(offs_k == k, -INF, l), axis=0)
    second = tl.maximum(runner_up, tl.max(tl.where(offs_c == column, -INF, peak), axis=0))

    fall = exponent(m - tl.maximum(first, -HIGHEST), rate, TEMPERED)
    moment = tl.sum((t + s * fall) * tl.exp2(fall), axis=0)
    total = tl.sum(s * tl.exp2(fall), axis=0)
    logit = tl.minimum(tl.load(x_ptr + token, mask=token < size_v, other=-INF).to(tl.float32), HIGHEST)
    if HAS_BEGIN_SUPPRESS:
        logit = hide(logit, begin_suppress_ptr, token, size_v)

    out = n.to(tl.int64) * chunks + chunk
    stride_f = tl.num_programs(0).to(tl.int64) * chunks
    tl.store(partial_ptr + _SCORE * stride_f + out, best)
    tl.store(partial_ptr + _LOGIT * stride_f + out, logit)
    tl.store(partial_ptr + _FIRST * stride_f + out, first)
    tl.store(partial_ptr + _SECOND * stride_f + out, second)
    tl.store(partial_ptr + _SUM * stride_f + out, total)
    tl.store(partial_ptr + _MOMENT * stride_f + out, moment)
    tl.store(partial_token_ptr + out, tl.where(token < size_v, first_v + token, _NO_TOKEN))


@triton.jit(do_not_specialize=["R", "chunks", "stride_tr", "stride_sr", "stride_pr", "stride_ir"])
def _combine_kernel(
    partial_ptr,
    partial_token_ptr,
    partial_tile_ptr,
    temperature_ptr,
    seeds_ptr,
    positions_ptr,
    step_ptr,
    begin_suppress_ptr,
    rows_ptr,
    count_ptr,
    token_ptr,
    log_prob_ptr,
    margin_ptr,
    neg_entropy_ptr,
    lse_ptr,
    R,
    chunks,
    stride_tr,
    stride_sr,
    stride_pr,
    stride_ir,
    BLOCK_C: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    HAS_BEGIN_SUPPRESS: tl.constexpr,
    TEMPERED: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_COUNT: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    row, written = n, chunks
    if HAS_COUNT:
        written = tl.where(n < tl.load(count_ptr), written, 0)
    if HAS_ROWS:
        row = tl.load(rows_ptr + n)
        written = tl.where((row >= 0) & (row < R), written, 0)
    there = written > 0
    offs_c = tl.arange(0, BLOCK_C)
    mask_c = offs_c < written
    partial_ptr += n * chunks + offs_c
    stride_f = tl.num_programs(0).to(tl.int64) * chunks
    score = tl.load(partial_ptr + _SCORE * stride_f, mask=mask_c, other=-INF)
    first = tl.load(partial_ptr + _FIRST * stride_f, mask=mask_c, other=-INF)
    second = tl.load(partial_ptr + _SECOND * stride_f, mask=mask_c, other=-INF)
    s = tl.load(partial_ptr + _SUM * stride_f, mask=mask_c, other=0.0)
    t = tl.load(partial_ptr + _MOMENT * stride_f, mask=mask_c, other=0.0)
    token = tl.load(partial_token_ptr + n * chunks + offs_c, mask=mask_c, other=_NO_TOKEN)

    best = tl.max(score, axis=0)
    chosen = (best > -INF) & there
    winner = tl.min(tl.where(score == best, token, _NO_TOKEN), axis=0)
    l, T, rate = best, 1.0, 1.0
    if HAS_NOISE:
        T = tl.load(temperature_ptr + row * stride_tr, mask=there, other=0.0)
        if chosen & (T > 0):
            # of equal scores the lowest tile wins, and tiles ascend from chunk to chunk
            place = tl.min(tl.where(score == best, offs_c, BLOCK_C), axis=0)
            first_token = tl.sum(tl.where(offs_c == place, token, 0), axis=0)
            offs_j = tl.arange(0, 16)
            tile = first_token + offs_j // 4 * 128 + offs_j % 4
            logit = tl.load(partial_tile_ptr + (n * chunks + place) * 16 + offs_j)
            seed = tl.load(seeds_ptr + row * stride_sr)
            position, step = tl.load(positions_ptr + row * stride_pr), tl.load(step_ptr + row * stride_ir)
            inside = noisy(logit, statistics_temperature(T), token_noise(seed, tile, position, step))
            winner = tl.min(tl.where(inside == tl.max(inside, axis=0), tile, _NO_TOKEN), axis=0)
            l = tl.max(tl.where(tile == winner, logit, -INF), axis=0)
    if HAS_BEGIN_SUPPRESS:
        l = tl.where(tl.load(begin_suppress_ptr + winner, mask=chosen, other=0) != 0, -INF, l)

    if TEMPERED:
        T = statistics_temperature(T)
        rate = tl.div_rn(1.0, T)
    m, likeliest = tl.max(first, axis=0, return_indices=True)
    measurable = m > -INF
    m = tl.where(measurable, m, 0.0)
    fall = exponent(tl.maximum(first, -HIGHEST) - m, rate, TEMPERED)
    total = tl.sum(s * tl.exp2(fall), axis=0)
    moment = tl.sum((t + s * fall) * tl.exp2(fall), axis=0)
    total = tl.where(measurable, total, 1.0)
    log_total = log_float32(total)
    rival = tl.max(tl.where(offs_c == likeliest, second, first), axis=0)
    gap, behind = l - m, rival - m
    if TEMPERED:
        gap, behind, m = tl.div_rn(gap, T), tl.div_rn(behind, T), tl.div_rn(m, T)

    tl.store(token_ptr + n, tl.where(chosen, winner, -1).to(tl.int64))
    tl.store(log_prob_ptr + n, tl.where(measurable, gap - log_total, -INF))
    tl.store(margin_ptr + n, tl.where(measurable, tl.div_rn(1.0 - _exp(behind), total), 0.0))
    tl.store(neg_entropy_ptr + n, tl.where(measurable, tl.div_rn(moment, total) * _LN2 - log_total, -INF))
    tl.store(lse_ptr + n, tl.where(measurable, m + log_total, -INF))


@triton.jit
def _column_tokens(k, column, COLUMNS: tl.constexpr):
    """Token number k of a column, ascending in k."""
    return (k // 4 * COLUMNS + column) * 4 + k % 4


@triton.jit
def _score_bound(l, T, seed, block, position, step):
    """Per column an upper bound of the scores of one group: logits [COLUMNS, 4], Philox blocks [COLUMNS]."""
    w0, w1, w2, w3 = words(seed, block, position, step, TOKEN_NOISE)
    w = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), l.shape)  # interleaves: w0 w1 w2 w3
    return tl.max(l + T * gumbel_bound(w), axis=1)


@triton.jit
def _scores(l, T, seed, block, j, position, step):
    """l + T g for token number j of each block; what is above -inf stays so whatever T is."""
    w0, w1, w2, w3 = words(seed, block, position, step, TOKEN_NOISE)
    w = tl.where(j == 0, w0, tl.where(j == 1, w1, tl.where(j == 2, w2, w3)))
    partner = tl.where(j == 0, w1, tl.where(j == 1, w2, tl.where(j == 2, w3, w0)))
    score = l + T * gumbel_from_words(w, partner)
    return tl.where(l > -INF, tl.maximum(score, -HIGHEST), -INF)


@triton.jit
def _exp(x):
    """e^x for x <= 0, with the rounding error of x log2 e given back: 2^(high + low) = 2^high (1 + low ln 2)."""
    x = tl.maximum(x, NOTHING)
    high = x * LOG2_E
    low = tl.fma(x, LOG2_E, -high)
    return tl.exp2(high) * (1.0 + low * _LN2)


class _Options(NamedTuple):
    """What is the same for all slices; tensors as in the public function, per-row ones of any stride."""

    temperature: Tensor | None = None
    seeds: Tensor | None = None
    positions: Tensor | None = None
    step: Tensor | None = None
    suppress: Tensor | None = None
    begin_suppress: Tensor | None = None
    tempered: bool = False
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
    floor: Tensor | None = None,
    rows: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """token, log_prob, margin, neg_entropy, lse of the chosen rows.

    Arguments as in the public function, already checked; per-row ones are [R], of any stride, and `floor` is [N]:
    logits below it count as -inf. Two launches; temporaries
    of 28 bytes per row and chunk (:mod:`dllm_kernels._tuning` has the width of a chunk).
    """
    n = len(logits) if rows is None else len(rows)
    noise, hidden = (temperature, seeds, positions, step), (adjacent(suppress), adjacent(begin_suppress))
    options = _Options(*noise, *hidden, tempered, floor, adjacent(rows), count)
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
    count: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The results of :func:`gumbel_argmax`, bit for bit, on logits [n, vocab_size] that arrive in slices.

    `slices` yields (first token, logits [n, width]), ascending, without gaps; first tokens are multiples of a chunk's
    width (``_tuning.gumbel_argmax(vocab_size)[0].BLOCK_V``). The memory of a slice may be used again by what is put on
    the stream after the next is asked for. The other arguments as in the public function, per-row ones [n]. One launch
    for each slice and one at the end; temporaries of 28 bytes per row and chunk.
    """
    noise, hidden = (temperature, seeds, positions, step), (adjacent(suppress), adjacent(begin_suppress))
    options = _Options(*noise, *hidden, tempered, count=count)
    return _reduce(slices, n, n, vocab_size, device, options)


def _reduce(
    slices: Iterable[tuple[int, Tensor]], n: int, R: int, vocab_size: int, device: torch.device, options: _Options
) -> tuple[Tensor, ...]:
    shape, num_warps = _tuning.gumbel_argmax(vocab_size)
    chunks = triton.cdiv(vocab_size, shape.BLOCK_V)
    partial = torch.empty(_FIELDS, n, chunks, dtype=torch.float32, device=device)
    partial_token = torch.empty(n, chunks, dtype=torch.int32, device=device)
    with torch.cuda.device_of(partial):
        if n:
            for first, logits in _checks.slices(slices, R, vocab_size, shape.BLOCK_V):
                _reduce_slice(first, logits, vocab_size, partial, partial_token, options, shape, num_warps)
        return combine(partial, partial_token, options.temperature, options.tempered, options.rows, R, options.count)


def combine(
    partial: Tensor,
    partial_token: Tensor,
    temperature: Tensor | None,
    tempered: bool,
    rows: Tensor | None,
    R: int,
    count: Tensor | None,
) -> tuple[Tensor, ...]:
    """The results of rows whose chunks have been reduced, by whatever kernel: partial [6, N, chunks] as a chunk hands
    it on, partial_token int32 [N, chunks]. One launch."""
    n, chunks = partial_token.shape
    token = torch.empty(n, dtype=torch.int64, device=partial.device)
    statistics = torch.empty(4, n, dtype=torch.float32, device=partial.device).unbind()
    if n == 0:
        return token, *statistics
    BLOCK_C = triton.next_power_of_2(chunks)
    _combine_kernel[(n,)](
        partial_ptr=partial,
        partial_token_ptr=partial_token,
        temperature_ptr=temperature,
        rows_ptr=rows,
        count_ptr=count,
        token_ptr=token,
        log_prob_ptr=statistics[0],
        margin_ptr=statistics[1],
        neg_entropy_ptr=statistics[2],
        lse_ptr=statistics[3],
        R=R,
        chunks=chunks,
        stride_tr=stride(temperature),
        BLOCK_C=BLOCK_C,
        HAS_NOISE=temperature is not None,
        TEMPERED=tempered,
        HAS_ROWS=rows is not None,
        HAS_COUNT=count is not None,
        num_warps=min(max(BLOCK_C // 256, 1), 8),
        num_stages=1,
        enable_fp_fusion=False,
    )
    return token, *statistics


def _reduce_slice(
    first: int,
    logits: Tensor,
    vocab_size: int,
    partial: Tensor,
    partial_token: Tensor,
    options: _Options,
    shape: _tuning.GumbelArgmaxShape,
    num_warps: int,
) -> None:
    """The partial results of the chunks that begin in a slice."""
    n, chunks = partial_token.shape
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
        partial_ptr=partial,
        partial_token_ptr=partial_token,
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
        HAS_NOISE=options.temperature is not None,
        HAS_SUPPRESS=options.suppress is not None,
        HAS_BEGIN_SUPPRESS=options.begin_suppress is not None,
        HAS_FLOOR=options.floor is not None,
        TEMPERED=options.tempered,
        HAS_ROWS=options.rows is not None,
        HAS_COUNT=options.count is not None,
        num_warps=num_warps,
        num_stages=shape.num_stages,
        enable_fp_fusion=False,  # the bits of the noise are multiplications and additions, each rounded
    )
