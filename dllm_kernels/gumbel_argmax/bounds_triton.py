"""Upper bounds of tiles' scores (:mod:`dllm_kernels.draw`) as device functions, from approximate sums and no logarithm.

A score is T times log Z + G, Z the sum of e^(l / T) over the tile. With E = -log(1 - U) >= U, G = -log E is at most
-ln U, and so at most ln 2 (32 - log2 w) where w is the tile's own word. Of a float32 x, bits / 2^23 - 127 read off its
bits is at most log2 x, and at least log2 x - 0.0861. So with S = 2^shift Z
    score / (T ln 2) <= (bits(S) - bits(w)) / 2^23 - shift + 32.0861
"""

import triton
import triton.language as tl

from dllm_kernels.logits_triton import HIGHEST

_LN2 = tl.constexpr(0.6931471805599453)
# 2^-8 covers roundings that do not grow with the logits: of S and of the exponentials, in which exponents are rounded,
# of the word and of the noise
_OFFSET = tl.constexpr(32.0861 + 2.0**-8)
# and this share of a bound those that do: of shift, of the bound, of the score and of the rates
_SLACK = tl.constexpr(2.0**-20)
_TINY = tl.constexpr(2.0**-121)  # above what is lost where exponentials are too small for float32


@triton.jit
def tile_bound(total, word, shift):
    """Per column the largest (bits(S) - bits(w)) / 2^23 - shift of its tiles: S and w [COLUMNS, n], shift [COLUMNS]."""
    bits = (total + _TINY).to(tl.int32, bitcast=True) - word.to(tl.float32).to(tl.int32, bitcast=True)
    return tl.max(tl.fma(bits.to(tl.float32), 2.0**-23, -shift[:, None]), axis=1)


@triton.jit
def bound_of_scores(bound, T):
    """The upper bound of scores that `tile_bound` gives. It is monotone, so that it may come after the maximum."""
    bound = T * _LN2 * (bound + _OFFSET)
    return tl.fma(tl.minimum(tl.abs(bound), HIGHEST), _SLACK, bound)
