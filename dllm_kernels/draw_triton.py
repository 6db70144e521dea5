"""The draw in two levels as Triton device functions: the bits of :mod:`dllm_kernels.draw`, which specifies them.

Launch every kernel that calls these with ``enable_fp_fusion=False``, as those of :mod:`dllm_kernels.philox_triton`.
"""

import triton
import triton.language as tl

from dllm_kernels import draw, philox
from dllm_kernels.logits_triton import HIGHEST, INF
from dllm_kernels.philox_triton import gumbel_from_words, log_float32, words

TILE_NOISE = tl.constexpr(philox.TILE_NOISE)
TOKEN_NOISE = tl.constexpr(philox.TOKEN_NOISE)
BLOCK = tl.constexpr(draw.BLOCK)  # adjacent tokens that make 32 tiles


@triton.jit
def tile_of(token):
    """The number of a token's tile."""
    return token // BLOCK * 32 + token // 4 % 32


@triton.jit
def word_of(number, w0, w1, w2, w3):
    """Word `number` (0 to 3) of four."""
    return tl.where(number == 0, w0, tl.where(number == 1, w1, tl.where(number == 2, w2, w3)))


@triton.jit
def tile_words(seed, tile, position, step):
    """The four words of each tile's Philox block, and the number of its own.

    Tile t = 32 b + r; blocks b = 32 s + 8 i + g for i in 0..3 share Philox blocks 256 s + 32 g + r.
    """
    block = tile // 32
    philox_block = block // 32 * 256 + block % 8 * 32 + tile % 32
    w0, w1, w2, w3 = words(seed, philox_block, position, step, TILE_NOISE)
    return w0, w1, w2, w3, block // 8 % 4


@triton.jit
def tile_score(m, total, T, seed, tile, position, step):
    """m + T (log S + G) of tiles with peaks m and sums S; -inf where m is."""
    w0, w1, w2, w3, i = tile_words(seed, tile, position, step)
    noise = gumbel_from_words(word_of(i, w0, w1, w2, w3), word_of(i, w1, w2, w3, w0))
    return _noisy(m, T, log_float32(tl.where(m > -INF, total, 1.0)) + noise)


@triton.jit
def draw_token(logits, first_token, T, seed, position, step):
    """The token that is drawn in a tile, of 16 logits, and its logit."""
    number = tl.arange(0, 16)
    token = first_token + tile_token(number)
    w0, w1, w2, w3 = words(seed, token // 4, position, step, TOKEN_NOISE)
    j = token % 4
    score = _noisy(logits, T, gumbel_from_words(word_of(j, w0, w1, w2, w3), word_of(j, w1, w2, w3, w0)))
    drawn = tl.min(tl.where(score == tl.max(score, axis=0), token, 2**31 - 1), axis=0)
    return drawn, tl.max(tl.where(token == drawn, logits, -INF), axis=0)


@triton.jit
def tile_token(number):
    """Token number 0 to 15 of a tile, counted from its first."""
    return number // 4 * 128 + number % 4


@triton.jit
def _noisy(l, T, noise):
    """l + T g; what is above -inf stays so whatever T is."""
    return tl.where(l > -INF, tl.maximum(l + T * noise, -HIGHEST), -INF)
