"""The kernel that combines the chunks of a row: Gumbel-argmax's second, and the fused head's with tiles for chunks.

A chunk hands on six float32 numbers and a token: the best score, the logit of its token, the two largest logits first
and second, and over the chunk sum 2^d and sum 2^d d with d = (l - first) / T log2 e. Logits that begin_suppress hides
are -inf in the last five. Chunks are combined in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels.logits_triton import HIGHEST, INF, LOG2_E, NOTHING, exponent, statistics_temperature, stride
from dllm_kernels.philox_triton import log_float32

_NO_TOKEN = tl.constexpr(2**31 - 1)
_LN2 = tl.constexpr(0.6931471805599453)

# the numbers of a chunk, float32 [6, N, chunks]
_SCORE, _LOGIT, _FIRST, _SECOND, _SUM, _MOMENT = (tl.constexpr(field) for field in range(6))
_FIELDS = 6


@triton.jit(do_not_specialize=["R", "chunks", "stride_tr"])
def _combine_kernel(
    partial_ptr,
    partial_token_ptr,
    temperature_ptr,
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
    BLOCK_C: tl.constexpr,
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
    offs_c = tl.arange(0, BLOCK_C)
    mask_c = offs_c < written
    partial_ptr += n * chunks + offs_c
    stride_f = tl.num_programs(0).to(tl.int64) * chunks
    score = tl.load(partial_ptr + _SCORE * stride_f, mask=mask_c, other=-INF)
    logit = tl.load(partial_ptr + _LOGIT * stride_f, mask=mask_c, other=-INF)
    first = tl.load(partial_ptr + _FIRST * stride_f, mask=mask_c, other=-INF)
    second = tl.load(partial_ptr + _SECOND * stride_f, mask=mask_c, other=-INF)
    s = tl.load(partial_ptr + _SUM * stride_f, mask=mask_c, other=0.0)
    t = tl.load(partial_ptr + _MOMENT * stride_f, mask=mask_c, other=0.0)
    token = tl.load(partial_token_ptr + n * chunks + offs_c, mask=mask_c, other=_NO_TOKEN)

    best = tl.max(score, axis=0)
    winner = tl.min(tl.where(score == best, token, _NO_TOKEN), axis=0)
    l = tl.max(tl.where(token == winner, logit, -INF), axis=0)

    T, rate = 1.0, 1.0
    if TEMPERED:
        T = statistics_temperature(tl.load(temperature_ptr + row * stride_tr, mask=written > 0, other=1.0))
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

    tl.store(token_ptr + n, tl.where(best > -INF, winner, -1).to(tl.int64))
    tl.store(log_prob_ptr + n, tl.where(measurable, gap - log_total, -INF))
    tl.store(margin_ptr + n, tl.where(measurable, tl.div_rn(1.0 - _exp(behind), total), 0.0))
    tl.store(neg_entropy_ptr + n, tl.where(measurable, tl.div_rn(moment, total) * _LN2 - log_total, -INF))
    tl.store(lse_ptr + n, tl.where(measurable, m + log_total, -INF))


@triton.jit
def _exp(x):
    """e^x for x <= 0, with the rounding error of x log2 e given back: 2^(high + low) = 2^high (1 + low ln 2)."""
    x = tl.maximum(x, NOTHING)
    high = x * LOG2_E
    low = tl.fma(x, LOG2_E, -high)
    return tl.exp2(high) * (1.0 + low * _LN2)


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
        TEMPERED=tempered,
        HAS_ROWS=rows is not None,
        HAS_COUNT=count is not None,
        num_warps=min(max(BLOCK_C // 256, 1), 8),
        num_stages=1,
        enable_fp_fusion=False,
    )
    return token, *statistics
