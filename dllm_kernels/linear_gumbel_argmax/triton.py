"""The head and the sampling of its logits in Triton: one fused kernel for few rows, slices of the vocabulary for many.

Few rows read the head's weight and do little else, so the logits never leave the registers: a program multiplies a tile
of 128 tokens with all of a block of rows, adds the bias and reduces its 128 logits of each row to a few numbers, which
the second kernel of :mod:`dllm_kernels.gumbel_argmax.triton` combines. The vocabulary is the long side of the product,
[tokens, H] x [H, rows], so that the matrix units are filled from 16 rows on.

The result of a row does not depend on its batch. A logit is one chain of products in steps of BLOCK_K, whatever the
block of rows, and is kept in float32; the order of every sum over tokens is written out.

A program's 128 tokens are eight tiles of the draw (:mod:`dllm_kernels.draw`), four runs of 32 adjacent tokens, in an
order that gives a warp whole tiles. It draws one number for each tile; the second kernel draws the token.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels import _tuning
from dllm_kernels.draw_triton import BLOCK, tile_score, tile_token
from dllm_kernels.gumbel_argmax import triton as gumbel_argmax
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
from dllm_kernels.int8_linear.triton import quantize_rows
from dllm_kernels.linear_gumbel_argmax import sliced
from dllm_kernels.logits_triton import HIGHEST, INF, adjacent, exponent, statistics_temperature, stride
from dllm_kernels.philox_triton import exp_float32

# Logits that exist at a time, in bytes. Up to so many rows the product waits for the weight, and would wait for logits
# that do not stay in an L2 of 40 or 50 MB. With more it multiplies longer than it takes to write them, to read them
# takes less time than to reduce them, and wide slices have fewer partly filled waves of tiles. Whole rows, of which
# every block reads the weight again, are many as well.
FEW_ROWS = 192
CACHED_BYTES, SLICE_BYTES = 2**25, 2**27


@triton.jit(do_not_specialize=["N", "R", "V", "tiles", "stride_tr", "stride_sr", "stride_pr", "stride_ir"])
def _tile_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    row_scale_ptr,
    weight_scale_ptr,
    temperature_ptr,
    seeds_ptr,
    positions_ptr,
    step_ptr,
    suppress_ptr,
    begin_suppress_ptr,
    rows_ptr,
    count_ptr,
    partial_ptr,
    partial_token_ptr,
    partial_tile_ptr,
    likeliest_ptr,
    N,
    R,
    V,
    H,
    tiles,
    stride_hr,
    stride_wv,
    stride_tr,
    stride_sr,
    stride_pr,
    stride_ir,
    BLOCK_V: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_H: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    INT8: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    HAS_SUPPRESS: tl.constexpr,
    HAS_BEGIN_SUPPRESS: tl.constexpr,
    TEMPERED: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_COUNT: tl.constexpr,
):
    # neighbours share a tile of the weight: it is read from memory once, whatever the number of row blocks
    blocks = tl.cdiv(N, BLOCK_R)
    tile = tl.program_id(0) // blocks
    first_r = tl.program_id(0) % blocks * BLOCK_R
    size_r = N
    if HAS_COUNT:
        size_r = tl.minimum(N, tl.load(count_ptr)).to(tl.int32)
        if first_r >= size_r:
            return
    offs_r = (first_r + tl.arange(0, BLOCK_R)).to(tl.int64)
    mask_r = offs_r < size_r
    row = offs_r
    if HAS_ROWS:
        row = tl.load(rows_ptr + offs_r, mask=mask_r, other=-1)
    there = mask_r & (row >= 0) & (row < R)

    offs_v = _token(tile, tl.arange(0, BLOCK_V))
    mask_v = offs_v < V
    offs_k = tl.arange(0, BLOCK_K)
    hidden_ptr += (row * stride_hr)[None, :] + offs_k[:, None]
    weight_ptr += (tl.minimum(offs_v, V - 1).to(tl.int64) * stride_wv)[:, None] + offs_k[None, :]
    l = tl.zeros([BLOCK_V, BLOCK_R], tl.int32 if INT8 else tl.float32)
    for k in range(0, H, BLOCK_K):
        if EVEN_H:
            w = tl.load(weight_ptr + k)
            h = tl.load(hidden_ptr + k, mask=there[None, :], other=0.0)
        else:
            w = tl.load(weight_ptr + k, mask=offs_k[None, :] < H - k, other=0.0)
            h = tl.load(hidden_ptr + k, mask=there[None, :] & (offs_k[:, None] < H - k), other=0.0)
        if INT8:
            l = tl.dot(w, h, l, out_dtype=tl.int32)
        else:
            l = tl.dot(w, h, l, input_precision="ieee")

    if INT8:
        row_scale = tl.load(row_scale_ptr + row, mask=there, other=0.0)
        weight_scale = tl.load(weight_scale_ptr + offs_v, mask=mask_v, other=0.0)
        l = l.to(tl.float32) * row_scale[None, :] * weight_scale[:, None]

    if HAS_BIAS:
        l += tl.load(bias_ptr + offs_v, mask=mask_v, other=0.0).to(tl.float32)[:, None]
    l = tl.minimum(tl.maximum(l, -INF), HIGHEST)  # of a number and NaN, either takes the number
    if HAS_SUPPRESS:
        mask_v &= tl.load(suppress_ptr + offs_v, mask=mask_v, other=0) == 0
    l = tl.where(mask_v[:, None] & there[None, :], l, -INF)

    T = tl.zeros([BLOCK_R], tl.float32)
    top = tl.max(l, axis=0)
    likeliest = tl.min(tl.where(l == top[None, :], offs_v[:, None], _NO_TOKEN), axis=0)
    best, token = top, likeliest
    partial_ptr += offs_r * tiles + tile
    stride_f = N.to(tl.int64) * tiles
    if HAS_NOISE:
        tl.store(partial_ptr + _TOP * stride_f, top, mask=mask_r)
        tl.store(likeliest_ptr + offs_r * tiles + tile, likeliest, mask=mask_r)
        T = tl.load(temperature_ptr + offs_r * stride_tr, mask=mask_r, other=0.0)
        seed = tl.load(seeds_ptr + offs_r * stride_sr, mask=mask_r, other=0)
        position = tl.load(positions_ptr + offs_r * stride_pr, mask=mask_r, other=0)
        step = tl.load(step_ptr + offs_r * stride_ir, mask=mask_r, other=0)
        logits_ptr = partial_tile_ptr + (offs_r * tiles + tile) * 16
        score, first_token = _draw(
            l, logits_ptr, mask_r, tile, statistics_temperature(T), seed, position, step, BLOCK_V, BLOCK_R
        )
        best, token = tl.where(T > 0, score, best), tl.where(T > 0, first_token, token)

    x = l  # what the statistics see
    if HAS_BEGIN_SUPPRESS:
        hidden = tl.load(begin_suppress_ptr + offs_v, mask=offs_v < V, other=0) != 0
        x = tl.where(hidden[:, None], -INF, l)
    first, place = tl.max(x, axis=0, return_indices=True)
    second = tl.max(tl.where(_is(place, BLOCK_V), -INF, x), axis=0)
    rate = 1.0
    if TEMPERED:
        rate = tl.div_rn(1.0, statistics_temperature(T))[None, :]
    d = exponent(x - tl.maximum(first, -HIGHEST)[None, :], rate, TEMPERED)
    e = tl.exp2(d)

    tl.store(partial_ptr + _SCORE * stride_f, best, mask=mask_r)
    tl.store(partial_ptr + _FIRST * stride_f, first, mask=mask_r)
    tl.store(partial_ptr + _SECOND * stride_f, second, mask=mask_r)
    tl.store(partial_ptr + _SUM * stride_f, _sum(e, BLOCK_V, BLOCK_R), mask=mask_r)
    tl.store(partial_ptr + _MOMENT * stride_f, _sum(e * d, BLOCK_V, BLOCK_R), mask=mask_r)
    token = tl.where(best > -INF, token, _NO_TOKEN)
    tl.store(partial_token_ptr + offs_r * tiles + tile, token, mask=mask_r)


@triton.jit
def _token(tile, n):
    """The token number n (0 to 127) of a program: eight tiles of the draw, each of which a warp holds."""
    return tile // 4 * BLOCK + tile % 4 * 32 + n // 16 * 4 + tile_token(n % 16)


@triton.jit
def _draw(l, logits_ptr, mask_r, tile, T, seed, position, step, BLOCK_V: tl.constexpr, BLOCK_R: tl.constexpr):
    """Score and first token of the best of a program's eight tiles; its 16 logits go to `logits_ptr` [BLOCK_R].

    In registers each tile's sum is known to 32 threads, which all would draw its noise. So sums pass through memory:
    one thread draws for one tile.
    """
    TILES: tl.constexpr = BLOCK_V // 16
    x = tl.reshape(l, [TILES, 16, BLOCK_R])
    m = tl.max(x, axis=1)
    gap = x - tl.where(m > -INF, m, 0.0)[:, None, :]
    e = tl.reshape(exp_float32(gap * tl.div_rn(1.0, T)[None, None, :]), [TILES, 2, 2, 4, BLOCK_R])
    of_j = tl.reshape(tl.sum(tl.sum(e, axis=2), axis=1), [TILES, 2, 2, BLOCK_R])
    total = tl.sum(tl.sum(of_j, axis=2), axis=1)

    offs_t, offs_2 = tl.arange(0, TILES), tl.arange(0, 2)
    sums_ptr = logits_ptr[None, :] + 2 * offs_t[:, None]
    tl.store(sums_ptr, m, mask=mask_r[None, :])
    tl.store(sums_ptr + 1, total, mask=mask_r[None, :])
    tl.debug_barrier()
    sums = tl.load(sums_ptr[:, :, None] + offs_2[None, None, :], mask=mask_r[None, :, None], other=1.0)
    m, total = tl.split(sums)
    tl.debug_barrier()
    first_t = tile // 4 * 32 + tile % 4 * TILES
    score = tile_score(
        m, total, T[None, :], seed[None, :], (first_t + offs_t)[:, None], position[None, :], step[None, :]
    )
    score, best = tl.max(score, axis=0, return_indices=True)  # ties: the lowest tile

    x = tl.max(tl.where(offs_t[:, None, None] == best[None, None, :], x, -INF), axis=0)
    tl.store(logits_ptr[None, :] + tl.arange(0, 16)[:, None], x, mask=mask_r[None, :])
    return score, _token(tile, 16 * best)


@triton.jit
def _is(v, BLOCK_V: tl.constexpr):
    """Where in a tile the token of each row is: [BLOCK_V, BLOCK_R]."""
    return tl.arange(0, BLOCK_V)[:, None] == v[None, :]


@triton.jit
def _sum(x, BLOCK_V: tl.constexpr, BLOCK_R: tl.constexpr):
    """Sum over a tile, [BLOCK_V, BLOCK_R] -> [BLOCK_R], two numbers at a time: tl.sum's order depends on the layout,
    and that on BLOCK_R. The first numbers to meet are 8 tokens apart, which on sm_90 one thread holds; then those of a
    warp, then those of different ones."""
    x = tl.sum(tl.reshape(x, [BLOCK_V // 16, 2, 8, BLOCK_R]), axis=1)
    x = tl.sum(tl.reshape(x, [BLOCK_V // 16, 2, 4, BLOCK_R]), axis=1)
    x = tl.sum(tl.reshape(x, [BLOCK_V // 16, 2, 2, BLOCK_R]), axis=1)
    x = tl.sum(tl.reshape(x, [BLOCK_V // 16, 2, BLOCK_R]), axis=1)
    x = tl.sum(tl.reshape(x, [BLOCK_V // 32, 2, BLOCK_R]), axis=1)
    x = tl.sum(tl.reshape(x, [BLOCK_V // 64, 2, BLOCK_R]), axis=1)
    return tl.sum(x, axis=0)  # of two


def linear_gumbel_argmax(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    weight_scale: Tensor | None = None,
    unconditional: Tensor | None = None,
    cfg_scale: float = 0.0,
    rows: Tensor | None = None,
    count: Tensor | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    softcap: float | None = None,
    **options: Tensor | bool | None,
) -> tuple[Tensor, ...]:
    """token, log_prob, margin, neg_entropy, lse, argmax; arguments as in the public function, already checked.

    `options` are those of :func:`dllm_kernels.gumbel_argmax.triton.over_slices`. Two launches where the rows are few.
    """
    n = len(hidden) if rows is None else len(rows)
    vocab_size = len(weight)
    whole_rows = top_k is not None or top_p is not None
    # by shape: never by values. A softcap is of rounded logits, which the fused head has not, and takes its registers
    few = not whole_rows and softcap is None and _tuning.fuses_head(n, vocab_size)
    if unconditional is not None or weight_scale is not None or not few:
        hidden, rows = sliced.choose(hidden, unconditional, cfg_scale, rows), None
    with torch.cuda.device_of(hidden):
        if few:
            return fused_head(hidden, weight, bias, rows, count, weight_scale, **options)
        head, element_size = (
            (hidden, weight, bias, weight_scale, count),
            hidden.element_size() if weight_scale is None else 4,
        )
        if whole_rows:
            block_r = sliced.fitting(SLICE_BYTES, vocab_size * element_size, 16)
            cut = dict(top_k=top_k, top_p=top_p, softcap=softcap)
            return sliced.by_rows(*head, block_r, impl="triton", **cut, **options)
        block_r, width = slice_shape(n, vocab_size, element_size)
        over_slices = functools.partial(gumbel_argmax.over_slices, softcap=softcap)
        return sliced.by_tokens(*head, block_r, width, over_slices, **options)


def slice_shape(n: int, vocab_size: int, itemsize: int) -> tuple[int, int]:
    """How many of n rows at a time, and how many tokens, have logits of so many bytes each."""
    chunk = _tuning.gumbel_argmax(vocab_size)[0].BLOCK_V
    slice_bytes = CACHED_BYTES if n <= FEW_ROWS else SLICE_BYTES
    block_r = sliced.fitting(slice_bytes, chunk * itemsize, 64)
    return block_r, sliced.fitting(slice_bytes, min(n, block_r) * itemsize, chunk)


def fused_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    count: Tensor | None,
    weight_scale: Tensor | None = None,
    temperature: Tensor | None = None,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    step: Tensor | None = None,
    suppress: Tensor | None = None,
    begin_suppress: Tensor | None = None,
    tempered: bool = False,
) -> tuple[Tensor, ...]:
    """The six results by one product and reduction, in two launches; temporaries of 24 bytes per row and tile, and 72
    more where there is noise."""
    n, vocab_size, width = len(hidden) if rows is None else len(rows), *weight.shape
    row_scale = None
    if weight_scale is not None:
        hidden, row_scale = quantize_rows(hidden)
    shape, launch = _tuning.fused_head(n, hidden.dtype)
    tiles = triton.cdiv(vocab_size, BLOCK.value) * (BLOCK.value // shape.BLOCK_V)
    partial = Partial.empty(n, tiles, hidden.device, noise=temperature is not None)
    begin_suppress = adjacent(begin_suppress)
    _tile_kernel[(tiles * triton.cdiv(n, shape.BLOCK_R),)](
        hidden_ptr=hidden,
        weight_ptr=weight,
        bias_ptr=bias,
        row_scale_ptr=row_scale,
        weight_scale_ptr=weight_scale,
        temperature_ptr=temperature,
        seeds_ptr=seeds,
        positions_ptr=positions,
        step_ptr=step,
        suppress_ptr=adjacent(suppress),
        begin_suppress_ptr=begin_suppress,
        rows_ptr=adjacent(rows),
        count_ptr=count,
        partial_ptr=partial.numbers,
        partial_token_ptr=partial.token,
        partial_tile_ptr=partial.tile,
        likeliest_ptr=partial.likeliest,
        N=n,
        R=len(hidden),
        V=vocab_size,
        H=width,
        tiles=tiles,
        stride_hr=hidden.stride(0),
        stride_wv=weight.stride(0),
        stride_tr=stride(temperature),
        stride_sr=stride(seeds),
        stride_pr=stride(positions),
        stride_ir=stride(step),
        **shape._asdict(),
        EVEN_H=width % shape.BLOCK_K == 0,
        HAS_BIAS=bias is not None,
        INT8=weight_scale is not None,
        HAS_NOISE=temperature is not None,
        HAS_SUPPRESS=suppress is not None,
        HAS_BEGIN_SUPPRESS=begin_suppress is not None,
        TEMPERED=tempered,
        HAS_ROWS=rows is not None,
        HAS_COUNT=count is not None,
        **launch,
        enable_fp_fusion=False,  # the bits of the noise are multiplications and additions, each rounded
    )
    noise = (temperature, seeds, positions, step)
    return combine(partial, n, *noise, begin_suppress, tempered, count=count)
