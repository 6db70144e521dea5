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
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels import _tuning
from dllm_kernels.philox_triton import TOKEN_NOISE, gumbel_bound, gumbel_from_words, log_float32, words

_INF = tl.constexpr(float("inf"))
_HIGHEST = tl.constexpr(torch.finfo(torch.float32).max)
_NO_TOKEN = tl.constexpr(2**31 - 1)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_NOTHING = tl.constexpr(-200.0)  # e^-200 is 0 in float32: differences below it count as this, and 0 * inf never arises

# what a chunk hands to the second kernel, float32 [6, N, chunks]
_SCORE, _LOGIT, _FIRST, _SECOND, _SUM, _MOMENT = (tl.constexpr(field) for field in range(6))
_FIELDS = 6


@triton.jit(do_not_specialize=["R", "stride_tr", "stride_sr", "stride_pr", "stride_ir"])
def _chunk_kernel(
    x_ptr,
    temperature_ptr,
    seeds_ptr,
    positions_ptr,
    step_ptr,
    suppress_ptr,
    rows_ptr,
    count_ptr,
    partial_ptr,
    partial_token_ptr,
    R,
    V,
    stride_xr,
    stride_tr,
    stride_sr,
    stride_pr,
    stride_ir,
    BLOCK_V: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    HAS_SUPPRESS: tl.constexpr,
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
    first_v = chunk * BLOCK_V
    size_v = V - first_v
    x_ptr += row * stride_xr + first_v
    if HAS_SUPPRESS:
        suppress_ptr += first_v
    T, seed, position, step = 0.0, 0, 0, 0
    if HAS_NOISE:
        T = tl.load(temperature_ptr + row * stride_tr)
        T = tl.where(T > 0, T, 0.0)
        seed = tl.load(seeds_ptr + row * stride_sr)
        position = tl.load(positions_ptr + row * stride_pr)
        step = tl.load(step_ptr + row * stride_ir)

    offs_c = tl.arange(0, COLUMNS)
    offs_g = offs_c[:, None] * 4 + tl.arange(0, 4)[None, :]
    peak = tl.full([COLUMNS], -_INF, tl.float32)
    bound = tl.full([COLUMNS], -_INF, tl.float32)
    m = tl.full([COLUMNS], -_HIGHEST, tl.float32)
    s = tl.zeros([COLUMNS], tl.float32)
    t = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, tl.minimum(BLOCK_V, size_v), 16 * COLUMNS):
        # four groups at once: four loads in flight, one change of m
        l0 = _load_logits(x_ptr, suppress_ptr, start + offs_g, size_v, HAS_SUPPRESS)
        l1 = _load_logits(x_ptr, suppress_ptr, start + 4 * COLUMNS + offs_g, size_v, HAS_SUPPRESS)
        l2 = _load_logits(x_ptr, suppress_ptr, start + 8 * COLUMNS + offs_g, size_v, HAS_SUPPRESS)
        l3 = _load_logits(x_ptr, suppress_ptr, start + 12 * COLUMNS + offs_g, size_v, HAS_SUPPRESS)
        l = tl.reshape(tl.join(tl.join(l0, l1), tl.join(l2, l3)), [COLUMNS, 16])

        peak = tl.maximum(peak, tl.max(l, axis=1))
        new_m = tl.maximum(m, peak)
        fall = tl.maximum(m - new_m, _NOTHING) * _LOG2_E
        d = tl.maximum(l - new_m[:, None], _NOTHING) * _LOG2_E
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
    if not HAS_NOISE:
        bound = peak

    # the best score: column by column, in the order of their bounds, for as long as one can still win
    offs_k = tl.arange(0, BLOCK_V // COLUMNS)
    best, token = tl.full([], -_INF, tl.float32), tl.full([], _NO_TOKEN, tl.int32)
    highest, column = tl.max(bound, axis=0, return_indices=True)
    while highest > -_INF:
        offs_v = _column_tokens(offs_k, column, COLUMNS)
        score = _load_logits(x_ptr, suppress_ptr, offs_v, size_v, HAS_SUPPRESS)
        if HAS_NOISE:
            score = _scores(score, T, seed, first_v // 4 + offs_v // 4, offs_v % 4, position, step)
        score_here, k = tl.max(score, axis=0, return_indices=True)  # ties: the first k, which is the lowest token
        token_here = _column_tokens(k, column, COLUMNS)
        better = (score_here > best) | ((score_here == best) & (token_here < token))
        best = tl.where(better, score_here, best)
        token = tl.where(better, token_here, token)
        beaten = (bound < best) | ((bound == best) & (4 * offs_c > token))  # 4 c: the lowest token of column c
        bound = tl.where(beaten | (offs_c == column), -_INF, bound)
        highest, column = tl.max(bound, axis=0, return_indices=True)

    # the two likeliest: the peak, and the better of its column's runner-up and the other columns' peaks
    first, column = tl.max(peak, axis=0, return_indices=True)
    l = _load_logits(x_ptr, suppress_ptr, _column_tokens(offs_k, column, COLUMNS), size_v, HAS_SUPPRESS)
    k = tl.argmax(l, axis=0)
    runner_up = tl.max(tl.where(offs_k == k, -_INF, l), axis=0)
    second = tl.maximum(runner_up, tl.max(tl.where(offs_c == column, -_INF, peak), axis=0))

    fall = tl.maximum(m - tl.maximum(first, -_HIGHEST), _NOTHING) * _LOG2_E
    moment = tl.sum((t + s * fall) * tl.exp2(fall), axis=0)
    total = tl.sum(s * tl.exp2(fall), axis=0)
    logit = tl.minimum(tl.load(x_ptr + token, mask=token < size_v, other=-_INF).to(tl.float32), _HIGHEST)

    chunks = tl.num_programs(1)
    out = n.to(tl.int64) * chunks + chunk
    stride_f = tl.num_programs(0).to(tl.int64) * chunks
    tl.store(partial_ptr + _SCORE * stride_f + out, best)
    tl.store(partial_ptr + _LOGIT * stride_f + out, logit)
    tl.store(partial_ptr + _FIRST * stride_f + out, first)
    tl.store(partial_ptr + _SECOND * stride_f + out, second)
    tl.store(partial_ptr + _SUM * stride_f + out, total)
    tl.store(partial_ptr + _MOMENT * stride_f + out, moment)
    tl.store(partial_token_ptr + out, tl.where(token < size_v, first_v + token, _NO_TOKEN))


@triton.jit(do_not_specialize=["R", "chunks"])
def _combine_kernel(
    partial_ptr,
    partial_token_ptr,
    rows_ptr,
    count_ptr,
    token_ptr,
    log_prob_ptr,
    margin_ptr,
    neg_entropy_ptr,
    lse_ptr,
    R,
    chunks,
    BLOCK_C: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_COUNT: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    written = chunks
    if HAS_COUNT:
        written = tl.where(n < tl.load(count_ptr), written, 0)
    if HAS_ROWS:
        row = tl.load(rows_ptr + n)
        written = tl.where((row >= 0) & (row < R), written, 0)
    offs_c = tl.arange(0, BLOCK_C)
    mask_c = offs_c < written
    partial_ptr += n * chunks + offs_c
    stride_f = tl.num_programs(0).to(tl.int64) * chunks
    score = tl.load(partial_ptr + _SCORE * stride_f, mask=mask_c, other=-_INF)
    logit = tl.load(partial_ptr + _LOGIT * stride_f, mask=mask_c, other=-_INF)
    first = tl.load(partial_ptr + _FIRST * stride_f, mask=mask_c, other=-_INF)
    second = tl.load(partial_ptr + _SECOND * stride_f, mask=mask_c, other=-_INF)
    s = tl.load(partial_ptr + _SUM * stride_f, mask=mask_c, other=0.0)
    t = tl.load(partial_ptr + _MOMENT * stride_f, mask=mask_c, other=0.0)
    token = tl.load(partial_token_ptr + n * chunks + offs_c, mask=mask_c, other=_NO_TOKEN)

    best = tl.max(score, axis=0)
    winner = tl.min(tl.where(score == best, token, _NO_TOKEN), axis=0)
    l = tl.max(tl.where(token == winner, logit, -_INF), axis=0)

    m, likeliest = tl.max(first, axis=0, return_indices=True)
    valid = m > -_INF
    m = tl.where(valid, m, 0.0)
    fall = tl.maximum(tl.maximum(first, -_HIGHEST) - m, _NOTHING) * _LOG2_E
    total = tl.sum(s * tl.exp2(fall), axis=0)
    moment = tl.sum((t + s * fall) * tl.exp2(fall), axis=0)
    total = tl.where(valid, total, 1.0)
    log_total = log_float32(total)
    rival = tl.max(tl.where(offs_c == likeliest, second, first), axis=0)

    tl.store(token_ptr + n, tl.where(valid, winner, -1).to(tl.int64))
    tl.store(log_prob_ptr + n, tl.where(valid, (l - m) - log_total, -_INF))
    tl.store(margin_ptr + n, tl.where(valid, tl.div_rn(1.0 - _exp(rival - m), total), 0.0))
    tl.store(neg_entropy_ptr + n, tl.where(valid, tl.div_rn(moment, total) * _LN2 - log_total, -_INF))
    tl.store(lse_ptr + n, tl.where(valid, m + log_total, -_INF))


@triton.jit
def _load_logits(x_ptr, suppress_ptr, offs_v, size_v, HAS_SUPPRESS: tl.constexpr):
    """float32 logits: NaN and what is suppressed or past the end as -inf, +inf as the largest finite number."""
    mask_v = offs_v < size_v
    x = tl.load(x_ptr + offs_v, mask=mask_v, other=-_INF).to(tl.float32)
    x = tl.minimum(tl.maximum(x, -_INF), _HIGHEST)  # of a number and NaN, either takes the number
    if HAS_SUPPRESS:
        x = tl.where(tl.load(suppress_ptr + offs_v, mask=mask_v, other=0), -_INF, x)
    return x


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
    return tl.where(l > -_INF, tl.maximum(score, -_HIGHEST), -_INF)


@triton.jit
def _exp(x):
    """e^x for x <= 0, with the rounding error of x log2 e given back: 2^(high + low) = 2^high (1 + low ln 2)."""
    x = tl.maximum(x, _NOTHING)
    high = x * _LOG2_E
    low = tl.fma(x, _LOG2_E, -high)
    return tl.exp2(high) * (1.0 + low * _LN2)


def gumbel_argmax(
    logits: Tensor,
    temperature: Tensor | None = None,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    step: Tensor | None = None,
    suppress: Tensor | None = None,
    rows: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """token, log_prob, margin, neg_entropy, lse of the chosen rows.

    Arguments as in the public function, already checked; per-row ones are [R], of any stride. Two launches; temporaries
    of 28 bytes per row and chunk (:mod:`dllm_kernels._tuning` has the width of a chunk).
    """
    n = len(logits) if rows is None else len(rows)
    token = torch.empty(n, dtype=torch.int64, device=logits.device)
    statistics = torch.empty(4, n, dtype=torch.float32, device=logits.device).unbind()
    if n == 0:
        return token, *statistics
    with torch.cuda.device_of(logits):
        shape, num_warps = _tuning.gumbel_argmax(logits.shape[1])
        chunks = triton.cdiv(logits.shape[1], shape.BLOCK_V)
        partial = torch.empty(_FIELDS, n, chunks, dtype=torch.float32, device=logits.device)
        partial_token = torch.empty(n, chunks, dtype=torch.int32, device=logits.device)
        rows = rows if rows is None else rows.contiguous()
        noise = (temperature, seeds, positions, step)
        stride_tr, stride_sr, stride_pr, stride_ir = (0 if x is None else x.stride(0) for x in noise)
        _chunk_kernel[(n, chunks)](
            x_ptr=logits,
            temperature_ptr=temperature,
            seeds_ptr=seeds,
            positions_ptr=positions,
            step_ptr=step,
            suppress_ptr=suppress if suppress is None else suppress.contiguous(),
            rows_ptr=rows,
            count_ptr=count,
            partial_ptr=partial,
            partial_token_ptr=partial_token,
            R=logits.shape[0],
            V=logits.shape[1],
            stride_xr=logits.stride(0),
            stride_tr=stride_tr,
            stride_sr=stride_sr,
            stride_pr=stride_pr,
            stride_ir=stride_ir,
            BLOCK_V=shape.BLOCK_V,
            COLUMNS=shape.COLUMNS,
            HAS_NOISE=temperature is not None,
            HAS_SUPPRESS=suppress is not None,
            HAS_ROWS=rows is not None,
            HAS_COUNT=count is not None,
            num_warps=num_warps,
            num_stages=shape.num_stages,
            enable_fp_fusion=False,  # the bits of the noise are multiplications and additions, each rounded
        )
        _combine_kernel[(n,)](
            partial_ptr=partial,
            partial_token_ptr=partial_token,
            rows_ptr=rows,
            count_ptr=count,
            token_ptr=token,
            log_prob_ptr=statistics[0],
            margin_ptr=statistics[1],
            neg_entropy_ptr=statistics[2],
            lse_ptr=statistics[3],
            R=logits.shape[0],
            chunks=chunks,
            BLOCK_C=triton.next_power_of_2(chunks),
            HAS_ROWS=rows is not None,
            HAS_COUNT=count is not None,
            num_warps=1,
            num_stages=1,
            enable_fp_fusion=False,
        )
    return token, *statistics
