"""Scores l + T g as device functions, and upper bounds of them that cost no logarithm."""

import triton
import triton.language as tl

from dllm_kernels.logits_triton import HIGHEST, INF
from dllm_kernels.philox_triton import TOKEN_NOISE, exponent_bits, gumbel_from_words, words


@triton.jit
def scores(l, T, seed, block, j, position, step):
    """l + T g for token number j of each block; what is above -inf stays so whatever T is."""
    w0, w1, w2, w3 = words(seed, block, position, step, TOKEN_NOISE)
    w = tl.where(j == 0, w0, tl.where(j == 1, w1, tl.where(j == 2, w2, w3)))
    partner = tl.where(j == 0, w1, tl.where(j == 1, w2, tl.where(j == 2, w3, w0)))
    score = l + T * gumbel_from_words(w, partner)
    return tl.where(l > -INF, tl.maximum(score, -HIGHEST), -INF)


@triton.jit
def score_bound(l, slope, seed, block, position, step):
    """Per column max(l + slope bits) over one group: logits [COLUMNS, 4], or 8 of two Philox blocks."""
    w0, w1, w2, w3 = words(seed, block, position, step, TOKEN_NOISE)
    if l.shape[1] == 8:
        v0, v1, v2, v3 = words(seed, block + 1, position, step, TOKEN_NOISE)
        w0, w1, w2, w3 = tl.join(w0, v0), tl.join(w1, v1), tl.join(w2, v2), tl.join(w3, v3)
    w = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), l.shape)  # interleaves: w0 w1 w2 w3 v0 v1 v2 v3
    return tl.max(tl.fma(exponent_bits(w), slope, l), axis=1)


@triton.jit
def rounded_up(bound, offset, slack):
    """An upper bound of the scores of a column, from bound = max(l + slope bits) + offset.

    Let y be l + slope bits + offset of a token without any rounding, at least l + fl(T g). In units of 2^-24 the score,
    which is rounded once more, exceeds y by |y| at most. Two roundings make `bound` fall short of y by 2 |y| + offset,
    two more here by 2 |y|, and `slack` = 8 gives back 8 |y| + 8 offset. It may come after the maximum, since each step
    is monotone. Without a slope nothing is added: fl(l + offset) >= fl(l + fl(T g)) already.
    """
    return tl.where(slack > 0, tl.fma(tl.abs(bound), slack, bound) + slack * offset, bound)
