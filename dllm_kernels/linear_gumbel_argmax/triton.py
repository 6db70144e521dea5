"""The head and the sampling of its logits in Triton: one fused kernel for few rows, slices of the vocabulary for many.

Few rows read the head's weight and do little else, so the logits never leave the registers: a program multiplies a tile
of 128 tokens with all of a block of rows, adds the bias and reduces its 128 logits of each row to seven numbers, which
the second kernel of :mod:`dllm_kernels.gumbel_argmax.triton` combines. The vocabulary is the long side of the product,
[tokens, H] x [H, rows], so that the matrix units are filled from 16 rows on.

The result of a row does not depend on its batch. A logit is one chain of products in steps of BLOCK_K, whatever the
block of rows, and is kept in float32; of the reductions over a tile only the two sums depend on their order, and theirs
is written out. Noise is computed for every token: the winner of a row is known to one thread in 64 here, and to prune
would cost the others as much as they save.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels import _tuning
from dllm_kernels.gumbel_argmax import triton as gumbel_argmax
from dllm_kernels.linear_gumbel_argmax import sliced
from dllm_kernels.logits_triton import HIGHEST, INF, adjacent, exponent, statistics_temperature, stride
from dllm_kernels.philox_triton import TOKEN_NOISE, gumbel_from_words, words

_NO_TOKEN = gumbel_argmax._NO_TOKEN
_SCORE, _LOGIT, _FIRST = gumbel_argmax._SCORE, gumbel_argmax._LOGIT, gumbel_argmax._FIRST
_SECOND, _SUM, _MOMENT = gumbel_argmax._SECOND, gumbel_argmax._SUM, gumbel_argmax._MOMENT

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

    offs_v = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    mask_v = offs_v < V
    offs_k = tl.arange(0, BLOCK_K)
    hidden_ptr += (row * stride_hr)[None, :] + offs_k[:, None]
    weight_ptr += (tl.minimum(offs_v, V - 1).to(tl.int64) * stride_wv)[:, None] + offs_k[None, :]
    l = tl.zeros([BLOCK_V, BLOCK_R], tl.float32)
    for k in range(0, H, BLOCK_K):
        if EVEN_H:
            w = tl.load(weight_ptr + k)
            h = tl.load(hidden_ptr + k, mask=there[None, :], other=0.0)
        else:
            w = tl.load(weight_ptr + k, mask=offs_k[None, :] < H - k, other=0.0)
            h = tl.load(hidden_ptr + k, mask=there[None, :] & (offs_k[:, None] < H - k), other=0.0)
        l = tl.dot(w, h, l, input_precision="ieee")

    if HAS_BIAS:
        l += tl.load(bias_ptr + offs_v, mask=mask_v, other=0.0).to(tl.float32)[:, None]
    l = tl.minimum(tl.maximum(l, -INF), HIGHEST)  # of a number and NaN, either takes the number
    if HAS_SUPPRESS:
        mask_v &= tl.load(suppress_ptr + offs_v, mask=mask_v, other=0) == 0
    l = tl.where(mask_v[:, None] & there[None, :], l, -INF)

    T = tl.zeros([BLOCK_R], tl.float32)
    if HAS_NOISE:
        T = tl.load(temperature_ptr + offs_r * stride_tr, mask=mask_r, other=0.0)
        T = tl.where(T > 0, T, 0.0)
        seed = tl.load(seeds_ptr + offs_r * stride_sr, mask=mask_r, other=0)
        position = tl.load(positions_ptr + offs_r * stride_pr, mask=mask_r, other=0)
        step = tl.load(step_ptr + offs_r * stride_ir, mask=mask_r, other=0)
        noise = _noise(seed, tile, position, step, BLOCK_V, BLOCK_R)
        # what is above -inf stays so whatever T is
        score = tl.where(l > -INF, tl.maximum(l + T[None, :] * noise, -HIGHEST), -INF)
        best, winner = tl.max(score, axis=0, return_indices=True)  # ties: the first, which is the lowest token
        logit = tl.max(tl.where(_is(winner, BLOCK_V), l, -INF), axis=0)
    else:
        best, winner = tl.max(l, axis=0, return_indices=True)
        logit = best
    token = tile * BLOCK_V + winner

    x = l  # what the statistics see
    if HAS_BEGIN_SUPPRESS:
        hidden = tl.load(begin_suppress_ptr + offs_v, mask=offs_v < V, other=0) != 0
        x = tl.where(hidden[:, None], -INF, l)
        hidden = tl.load(begin_suppress_ptr + token, mask=token < V, other=0) != 0
        logit = tl.where(hidden, -INF, logit)
    first, likeliest = tl.max(x, axis=0, return_indices=True)
    second = tl.max(tl.where(_is(likeliest, BLOCK_V), -INF, x), axis=0)
    rate = 1.0
    if TEMPERED:
        rate = tl.div_rn(1.0, statistics_temperature(T))[None, :]
    d = exponent(x - tl.maximum(first, -HIGHEST)[None, :], rate, TEMPERED)
    e = tl.exp2(d)

    partial_ptr += offs_r * tiles + tile
    stride_f = N.to(tl.int64) * tiles
    tl.store(partial_ptr + _SCORE * stride_f, best, mask=mask_r)
    tl.store(partial_ptr + _LOGIT * stride_f, logit, mask=mask_r)
    tl.store(partial_ptr + _FIRST * stride_f, first, mask=mask_r)
    tl.store(partial_ptr + _SECOND * stride_f, second, mask=mask_r)
    tl.store(partial_ptr + _SUM * stride_f, _sum(e, BLOCK_V, BLOCK_R), mask=mask_r)
    tl.store(partial_ptr + _MOMENT * stride_f, _sum(e * d, BLOCK_V, BLOCK_R), mask=mask_r)
    token = tl.where(best > -INF, token, _NO_TOKEN)
    tl.store(partial_token_ptr + offs_r * tiles + tile, token, mask=mask_r)


@triton.jit
def _noise(seed, tile, position, step, BLOCK_V: tl.constexpr, BLOCK_R: tl.constexpr):
    """Gumbel noise [BLOCK_V, BLOCK_R]; one Philox block serves four neighbouring tokens."""
    block = tile * (BLOCK_V // 4) + tl.arange(0, BLOCK_V // 4)
    w0, w1, w2, w3 = words(seed[None, :], block[:, None], position[None, :], step[None, :], TOKEN_NOISE)
    even = tl.join(gumbel_from_words(w0, w1), gumbel_from_words(w2, w3))
    odd = tl.join(gumbel_from_words(w1, w2), gumbel_from_words(w3, w0))
    return tl.reshape(tl.permute(tl.join(even, odd), (0, 2, 3, 1)), [BLOCK_V, BLOCK_R])  # interleaves: 0 1 2 3


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
    unconditional: Tensor | None = None,
    cfg_scale: float = 0.0,
    rows: Tensor | None = None,
    count: Tensor | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    **options: Tensor | bool | None,
) -> tuple[Tensor, ...]:
    """token, log_prob, margin, neg_entropy, lse; arguments as in the public function, already checked.

    `options` are those of :func:`dllm_kernels.gumbel_argmax.triton.over_slices`. Two launches where the rows are few.
    """
    n = len(hidden) if rows is None else len(rows)
    vocab_size = len(weight)
    whole_rows = top_k is not None or top_p is not None
    few = not whole_rows and _tuning.fuses_head(n, vocab_size)  # by shape: never by values
    if unconditional is not None or not few:
        hidden, rows = sliced.choose(hidden, unconditional, cfg_scale, rows), None
    with torch.cuda.device_of(hidden):
        if few:
            return fused_head(hidden, weight, bias, rows, count, **options)
        if whole_rows:
            block_r = sliced.fitting(SLICE_BYTES, vocab_size * hidden.element_size(), 16)
            return sliced.by_rows(
                hidden, weight, bias, count, block_r, impl="triton", top_k=top_k, top_p=top_p, **options
            )
        chunk = _tuning.gumbel_argmax(vocab_size)[0].BLOCK_V
        slice_bytes = CACHED_BYTES if n <= FEW_ROWS else SLICE_BYTES
        block_r = sliced.fitting(slice_bytes, chunk * hidden.element_size(), 64)
        width = sliced.fitting(slice_bytes, min(n, block_r) * hidden.element_size(), chunk)
        return sliced.by_tokens(hidden, weight, bias, count, block_r, width, gumbel_argmax.over_slices, **options)


def fused_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    count: Tensor | None,
    temperature: Tensor | None = None,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    step: Tensor | None = None,
    suppress: Tensor | None = None,
    begin_suppress: Tensor | None = None,
    tempered: bool = False,
) -> tuple[Tensor, ...]:
    """The five results by one product and reduction, in two launches; temporaries of 28 bytes per row and tile."""
    n, vocab_size, width = len(hidden) if rows is None else len(rows), *weight.shape
    shape, launch = _tuning.fused_head(n, hidden.dtype)
    tiles = triton.cdiv(vocab_size, shape.BLOCK_V)
    partial = torch.empty(gumbel_argmax._FIELDS, n, tiles, dtype=torch.float32, device=hidden.device)
    partial_token = torch.empty(n, tiles, dtype=torch.int32, device=hidden.device)
    _tile_kernel[(tiles * triton.cdiv(n, shape.BLOCK_R),)](
        hidden_ptr=hidden,
        weight_ptr=weight,
        bias_ptr=bias,
        temperature_ptr=temperature,
        seeds_ptr=seeds,
        positions_ptr=positions,
        step_ptr=step,
        suppress_ptr=adjacent(suppress),
        begin_suppress_ptr=adjacent(begin_suppress),
        rows_ptr=adjacent(rows),
        count_ptr=count,
        partial_ptr=partial,
        partial_token_ptr=partial_token,
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
        HAS_NOISE=temperature is not None,
        HAS_SUPPRESS=suppress is not None,
        HAS_BEGIN_SUPPRESS=begin_suppress is not None,
        TEMPERED=tempered,
        HAS_ROWS=rows is not None,
        HAS_COUNT=count is not None,
        **launch,
        enable_fp_fusion=False,  # the bits of the noise are multiplications and additions, each rounded
    )
    return gumbel_argmax.combine(partial, partial_token, temperature, tempered, None, n, count)
