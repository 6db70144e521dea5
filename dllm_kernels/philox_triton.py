"""The random stream as Triton device functions: the bits of :mod:`dllm_kernels.philox`, which specifies them.

Launch every kernel that calls these with ``enable_fp_fusion=False``: a multiplication contracted with an addition
rounds once instead of twice, and the last bit of the noise would depend on the compiler.
"""

import triton
import triton.language as tl

from dllm_kernels import _impl, philox

TOKEN_NOISE = tl.constexpr(philox.TOKEN_NOISE)
RANDOM_CONFIDENCE = tl.constexpr(philox.RANDOM_CONFIDENCE)

_MULTIPLIER0, _MULTIPLIER1 = (tl.constexpr(multiplier) for multiplier in philox._MULTIPLIER)
_WEYL0, _WEYL1 = (tl.constexpr(increment) for increment in philox._WEYL)
_ALL_BITS = tl.constexpr(philox._MASK)
_HAS_ASSEMBLY = tl.constexpr(not _impl.interpreting())
_LN2_HIGH = tl.constexpr(philox._LN2_HIGH)
_LN2_LOW = tl.constexpr(philox._LN2_LOW)
_LOG2_E = tl.constexpr(philox._LOG2_E)
_TO_INTEGER = tl.constexpr(philox._TO_INTEGER)
_LOWEST_EXPONENT = tl.constexpr(philox._LOWEST_EXPONENT)
_E0, _E1, _E2, _E3, _E4, _E5 = (tl.constexpr(coefficient) for coefficient in philox._EXP_POLYNOMIAL)
_SQRT_HALF_BITS = tl.constexpr(philox._SQRT_HALF_BITS)
_P0, _P1, _P2, _P3, _P4, _P5, _P6, _P7, _P8 = (tl.constexpr(coefficient) for coefficient in philox._LOG_POLYNOMIAL)


@triton.jit
def words(seed, block, position, step, STREAM: tl.constexpr):
    """The four uint32 words of each block of four tokens; seed, position and step are integers of up to 64 bits.

    As ``tl.philox``, but each 32 x 32 bit product is formed once, in 64 bits, and not as two halves: a quarter fewer
    instructions on sm_90 (IMAD.WIDE for IMAD and IMAD.HI).
    """
    c0, c1, c2 = block.to(tl.uint32), position.to(tl.uint32), step.to(tl.uint32)
    c3 = tl.full([], STREAM, tl.uint32)
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        low0, high0 = _product(c0, _MULTIPLIER0)
        low1, high1 = _product(c2, _MULTIPLIER1)
        c0, c1 = high1 ^ c1 ^ k0, low1
        c2, c3 = high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + _WEYL0, k1 + _WEYL1
    return c0, c1, c2, c3


@triton.jit
def _product(x, MULTIPLIER: tl.constexpr):
    """The low and the high 32 bits of a product of uint32.

    On NVIDIA by assembly: LLVM's vectorizer would form one product in three twice, for either half.
    """
    if _HAS_ASSEMBLY and tl.target_info.is_cuda():
        return tl.inline_asm_elementwise(
            "{ .reg .b64 p; mul.wide.u32 p, $2, $3; mov.b64 {$0, $1}, p; }",
            "=r,=r,r,r",
            [x, MULTIPLIER],
            dtype=(tl.uint32, tl.uint32),
            is_pure=True,
            pack=1,
        )
    product = x.to(tl.uint64) * MULTIPLIER
    return product.to(tl.uint32), (product >> 32).to(tl.uint32)


@triton.jit
def log_float32(x):
    """Natural logarithm of positive normal float32 numbers: log x = e ln 2 + log(1 + f), Cephes' polynomial."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    e = exponent.to(tl.float32)
    p = f * _P0 + _P1
    p = p * f + _P2
    p = p * f + _P3
    p = p * f + _P4
    p = p * f + _P5
    p = p * f + _P6
    p = p * f + _P7
    p = p * f + _P8
    square = f * f
    tail = (p * f) * square + e * _LN2_LOW - 0.5 * square
    return (f + tail) + e * _LN2_HIGH


@triton.jit
def gumbel_from_words(w, partner):
    """g = -log(-log(1 - U)) with U = (w 2^32 + partner + 1/2) 2^-64, from uint32 words."""
    u = _unit(w, partner)
    series = u * (1 / 6) + 1 / 5
    series = series * u + 1 / 4
    series = series * u + 1 / 3
    series = series * u + 1 / 2
    series = series * u + 1.0
    near_zero = series * u
    elsewhere = -log_float32(_unit(w ^ 0xFFFFFFFF, partner ^ 0xFFFFFFFF))
    return -log_float32(tl.where(w < 268435456, near_zero, elsewhere))  # 2^28


@triton.jit
def _unit(high, low):
    """(high 2^32 + low + 1/2) 2^-64 in float32: each word rounded once, each product exact, one rounded sum."""
    return high.to(tl.float32) * 2.0**-32 + (low.to(tl.float32) + 0.5) * 2.0**-64


@triton.jit
def exp_float32(x):
    """e^x of x <= 0: 2^n (1 + r + r^2 P(r)), Cephes' polynomial; exactly 0 for x < -87."""
    power, _, _ = power_of_e(tl.maximum(x, _LOWEST_EXPONENT))
    return tl.where(x < _LOWEST_EXPONENT, 0.0, power)


@triton.jit
def power_of_e(y):
    """e^y = 2^n (1 + q) of y from -87 to 0; and n and q = r + r^2 P(r)."""
    n = (y * _LOG2_E + _TO_INTEGER) - _TO_INTEGER
    r = (y - n * _LN2_HIGH) - n * _LN2_LOW
    p = r * _E0 + _E1
    p = p * r + _E2
    p = p * r + _E3
    p = p * r + _E4
    p = p * r + _E5
    q = p * (r * r) + r
    power = ((q + 1.0).to(tl.int32, bitcast=True) + (n.to(tl.int32) << 23)).to(tl.float32, bitcast=True)
    return power, n, q
