"""The kernel that combines the chunks of a row: Gumbel-argmax's second, and the fused head's with tiles for chunks.

A chunk hands on five or six float32 numbers and a token: its best score, the two largest logits first and second, and
over the chunk sum 2^d and sum 2^d d with d = (l - first) / T log2 e. Logits that begin_suppress hides are -inf in the
last four. The sixth is the largest logit of all, and a chunk hands on the first token that has it, where noise may draw
another. At T = 0 the score is the largest logit, and the token has it. Otherwise they are the score and the first token
of the best tile (:mod:`dllm_kernels.draw`), whose 16 logits the chunk hands on too; this kernel draws the row's token
from the best tile of all. Chunks are combined in a fixed order.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels.draw_triton import draw_token
from dllm_kernels.logits_triton import HIGHEST, INF, LOG2_E, NOTHING, exponent, statistics_temperature, stride
from dllm_kernels.philox_triton import log_float32

_NO_TOKEN = tl.constexpr(2**31 - 1)
_LN2 = tl.constexpr(0.6931471805599453)

# the numbers of a chunk, float32 [6, N, chunks]; the last with noise only
_SCORE, _FIRST, _SECOND, _SUM, _MOMENT, _TOP = (tl.constexpr(field) for field in range(6))


@triton.jit(do_not_specialize=["R", "chunks", "stride_tr", "stride_sr", "stride_pr", "stride_ir"])
def _combine_kernel(
    partial_ptr,
    partial_token_ptr,
    partial_tile_ptr,
    likeliest_ptr,
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
    argmax_ptr,
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
    argmax = winner
    l, T, rate = best, 1.0, 1.0
    if HAS_NOISE:
        top = tl.load(partial_ptr + _TOP * stride_f, mask=mask_c, other=-INF)
        likeliest = tl.load(likeliest_ptr + n * chunks + offs_c, mask=mask_c, other=_NO_TOKEN)
        argmax = tl.min(tl.where(top == tl.max(top, axis=0), likeliest, _NO_TOKEN), axis=0)
        T = tl.load(temperature_ptr + row * stride_tr, mask=there, other=0.0)
        if chosen & (T > 0):
            # of equal scores the lowest tile wins, and tiles ascend from chunk to chunk
            place = tl.min(tl.where(score == best, offs_c, BLOCK_C), axis=0)
            first_token = tl.sum(tl.where(offs_c == place, token, 0), axis=0)
            logits = tl.load(partial_tile_ptr + (n * chunks + place) * 16 + tl.arange(0, 16))
            seed = tl.load(seeds_ptr + row * stride_sr)
            position, step = tl.load(positions_ptr + row * stride_pr), tl.load(step_ptr + row * stride_ir)
            winner, l = draw_token(logits, first_token, statistics_temperature(T), seed, position, step)
    if HAS_BEGIN_SUPPRESS:
        l = tl.where(tl.load(begin_suppress_ptr + winner, mask=chosen, other=0) != 0, -INF, l)

    if TEMPERED:
        T = statistics_temperature(T)
        rate = tl.div_rn(1.0, T)
    m, place = tl.max(first, axis=0, return_indices=True)
    measurable = m > -INF
    m = tl.where(measurable, m, 0.0)
    fall = exponent(tl.maximum(first, -HIGHEST) - m, rate, TEMPERED)
    total = tl.sum(s * tl.exp2(fall), axis=0)
    moment = tl.sum((t + s * fall) * tl.exp2(fall), axis=0)
    total = tl.where(measurable, total, 1.0)
    log_total = log_float32(total)
    rival = tl.max(tl.where(offs_c == place, second, first), axis=0)
    gap, behind = l - m, rival - m
    if TEMPERED:
        gap, behind, m = tl.div_rn(gap, T), tl.div_rn(behind, T), tl.div_rn(m, T)

    tl.store(token_ptr + n, tl.where(chosen, winner, -1).to(tl.int64))
    tl.store(argmax_ptr + n, tl.where(chosen, argmax, -1).to(tl.int64))
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


class Partial(NamedTuple):
    """What chunks hand on.

    numbers: float32 [6, N, chunks]; without noise [5, N, chunks].
    token: int32 [N, chunks].
    tile: float32 [N, chunks, 16], the logits of each chunk's best tile; None without noise.
    likeliest: int32 [N, chunks], the first token with the largest logit; None without noise, where it is `token`.
    """

    numbers: Tensor
    token: Tensor
    tile: Tensor | None
    likeliest: Tensor | None

    @classmethod
    def empty(cls, n: int, chunks: int, device: torch.device, *, noise: bool) -> Partial:
        """Memory for N rows of so many chunks."""
        real = functools.partial(torch.empty, dtype=torch.float32, device=device)
        token = torch.empty(n, chunks, dtype=torch.int32, device=device)
        tile, likeliest = (real(n, chunks, 16), torch.empty_like(token)) if noise else (None, None)
        return cls(real(6 if noise else 5, n, chunks), token, tile, likeliest)


def combine(
    partial: Partial,
    R: int,
    temperature: Tensor | None = None,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    step: Tensor | None = None,
    begin_suppress: Tensor | None = None,
    tempered: bool = False,
    rows: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The results of rows whose chunks have been reduced, by whatever kernel. One launch. `R` is the number of rows of
    per-row tensors, which may have any stride; `begin_suppress` and `rows` have none."""
    n, chunks = partial.token.shape
    token, argmax = (torch.empty(n, dtype=torch.int64, device=partial.token.device) for _ in range(2))
    statistics = torch.empty(4, n, dtype=torch.float32, device=partial.token.device).unbind()
    if n == 0:
        return token, *statistics, argmax
    BLOCK_C = triton.next_power_of_2(chunks)
    _combine_kernel[(n,)](
        partial_ptr=partial.numbers,
        partial_token_ptr=partial.token,
        partial_tile_ptr=partial.tile,
        likeliest_ptr=partial.likeliest,
        temperature_ptr=temperature,
        seeds_ptr=seeds,
        positions_ptr=positions,
        step_ptr=step,
        begin_suppress_ptr=begin_suppress,
        rows_ptr=rows,
        count_ptr=count,
        token_ptr=token,
        log_prob_ptr=statistics[0],
        margin_ptr=statistics[1],
        neg_entropy_ptr=statistics[2],
        lse_ptr=statistics[3],
        argmax_ptr=argmax,
        R=R,
        chunks=chunks,
        stride_tr=stride(temperature),
        stride_sr=stride(seeds),
        stride_pr=stride(positions),
        stride_ir=stride(step),
        BLOCK_C=BLOCK_C,
        HAS_NOISE=temperature is not None,
        HAS_BEGIN_SUPPRESS=begin_suppress is not None,
        TEMPERED=tempered,
        HAS_ROWS=rows is not None,
        HAS_COUNT=count is not None,
        num_warps=min(max(BLOCK_C // 256, 1), 8),
        num_stages=1,
        enable_fp_fusion=False,
    )
    return token, *statistics, argmax
