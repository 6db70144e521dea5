"""The columns of a chunk (`triton.py`) as device functions: their tokens and logits, and the search through them.

The search looks at whole columns, one after the other, and only at those that can still hold what is sought.
"""

import triton
import triton.language as tl

from dllm_kernels.draw_triton import BLOCK, tile_of, tile_score, tile_token
from dllm_kernels.gumbel_argmax.combine_triton import _NO_TOKEN
from dllm_kernels.logits_triton import INF, load_logits
from dllm_kernels.philox_triton import exp_float32

_RULED_OUT = tl.constexpr(-(2**31))


@triton.jit
def column_tokens(k, column, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """Token number k of a column: tile by tile, and number k mod 16 of its tile."""
    LANES: tl.constexpr = 128 // GROUP
    TILES: tl.constexpr = GROUP // 4
    turn, tile = k // (16 * TILES), k // 16 % TILES
    first = (turn * (COLUMNS // LANES) + column // LANES) * BLOCK + column % LANES * GROUP
    return first + tile * 4 + tile_token(k % 16)


@triton.jit
def column_logits(
    logits,
    column,
    BLOCK_V: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_SUPPRESS: tl.constexpr,
    HAS_FLOOR: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """The logits of a column and their tokens; `logits` says where a chunk's are and what is done to them."""
    x_ptr, suppress_ptr, size_v, floor, softcap = logits
    offs_v = column_tokens(tl.arange(0, BLOCK_V // COLUMNS), column, COLUMNS, GROUP)
    l = load_logits(x_ptr, suppress_ptr, offs_v, size_v, floor, HAS_SUPPRESS, HAS_FLOOR, softcap, HAS_SOFTCAP)
    return l, offs_v


@triton.jit
def first_of_ties(
    logits,
    tied,
    highest,
    likeliest,
    BLOCK_V: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_SUPPRESS: tl.constexpr,
    HAS_FLOOR: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """The first token whose logit is `highest`: `likeliest`, or one of the columns that are tied."""
    offs_c = tl.arange(0, COLUMNS)
    offs_first = column_tokens(0, offs_c, COLUMNS, GROUP)
    tied &= offs_first < likeliest
    next_c = lowest(offs_c, tied)
    while next_c < COLUMNS:
        l, offs_v = column_logits(logits, next_c, BLOCK_V, COLUMNS, GROUP, HAS_SUPPRESS, HAS_FLOOR, HAS_SOFTCAP)
        likeliest = tl.minimum(likeliest, lowest(offs_v, l == highest))
        tied &= (offs_c > next_c) & (offs_first < likeliest)
        next_c = lowest(offs_c, tied)
    return likeliest


@triton.jit
def best_score(
    logits,
    draws,
    T,
    seed,
    position,
    step,
    first_v,
    reach,
    best,
    token,
    BLOCK_V: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    HAS_SUPPRESS: tl.constexpr,
    HAS_FLOOR: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """The best score and its token: of `best`, and of columns in the order of their bounds `reach`, for as long as one
    can still win."""
    offs_c = tl.arange(0, COLUMNS)
    offs_first = column_tokens(0, offs_c, COLUMNS, GROUP)
    next_c = tl.max(_rank(reach, offs_c, COLUMNS), axis=0)
    while next_c > _RULED_OUT:
        column = COLUMNS - 1 - (next_c & (COLUMNS - 1))
        l, offs_v = column_logits(logits, column, BLOCK_V, COLUMNS, GROUP, HAS_SUPPRESS, HAS_FLOOR, HAS_SOFTCAP)
        score_here = largest(l)
        token_here = lowest(offs_v, l == score_here)
        if HAS_NOISE:
            if draws:
                score, offs_t = _tile_scores(l, T, seed, position, step, first_v, column, COLUMNS, GROUP)
                score_here = largest(score)
                token_here = lowest(offs_t, score == score_here)
        better = (score_here > best) | ((score_here == best) & (token_here < token))
        best = tl.where(better, score_here, best)
        token = tl.where(better, token_here, token)
        reach = tl.where(beaten(reach, offs_first, best, token) | (offs_c == column), -INF, reach)
        next_c = tl.max(_rank(reach, offs_c, COLUMNS), axis=0)
    return best, token


@triton.jit
def _tile_scores(l, T, seed, position, step, first_v, column, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """Scores of the tiles of a column, of its logits, and their first tokens."""
    TILES: tl.constexpr = l.shape[0] // 16
    x = tl.reshape(l, [TILES, 16])
    m = tl.max(x, axis=1)
    e = exp_float32((x - tl.where(m > -INF, m, 0.0)[:, None]) * tl.div_rn(1.0, T))
    of_j = tl.sum(tl.sum(tl.reshape(e, [TILES, 2, 2, 4]), axis=2), axis=1)
    total = tl.sum(tl.sum(tl.reshape(of_j, [TILES, 2, 2]), axis=2), axis=1)
    offs_t = column_tokens(tl.arange(0, TILES) * 16, column, COLUMNS, GROUP)
    return tile_score(m, total, T, seed, tile_of(first_v + offs_t), position, step), offs_t


@triton.jit
def _rank(bound, offs_c, COLUMNS: tl.constexpr):
    """Integers whose largest names the column to look at: its bound but for the last bits, and the column in their
    place, the lowest first."""
    rank = (_ordered(bound) & -COLUMNS) | (COLUMNS - 1 - offs_c)
    return tl.where(bound > -INF, rank, _RULED_OUT)


@triton.jit
def beaten(bound, offs_first, best, token):
    """Columns that cannot win, of bounds and first tokens."""
    return (bound < best) | ((bound == best) & (offs_first > token))


@triton.jit
def larger_max(x, y):
    """The larger of the maxima of two vectors; by one reduction where they have the same length."""
    if x.shape[0] == y.shape[0]:
        larger = largest(tl.maximum(x, y))
    else:
        larger = tl.maximum(largest(x), largest(y))
    return larger


@triton.jit
def largest(x):
    """The largest of some numbers, none of them NaN."""
    return _ordered(tl.max(_ordered(x), axis=0)).to(tl.float32, bitcast=True)


@triton.jit
def _ordered(x):
    """The bits of float32 numbers as integers in the order of the numbers; its own inverse. Integers, because sm_80 and
    later reduce them by one instruction a warp."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def lowest(index, condition):
    """The lowest index where a condition holds."""
    return tl.min(tl.where(condition, index, _NO_TOKEN), axis=0)
