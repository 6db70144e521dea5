"""The random stream: counter-based noise that depends on nothing but its address.

Every random number of this library has an address ``(seed, token, position, step, stream)``: the 64-bit seed of the
*sample*, the token id, the position in the canvas, the denoising step and one of eight streams. The number at an
address is the same alone or in any batch, on any device and in any implementation. This file is the specification, in
plain torch; the C++ and Triton kernels compute the same bits. What is drawn with them: :mod:`dllm_kernels.draw`.

Words
    Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with
    key = (seed mod 2^32, seed div 2^32) and counter = (token div 4, position, step, stream) gives four 32-bit words;
    the token's own word w is number token mod 4, its partner w' is the next one, cyclically.

Uniform, 64 bits
    U = (w 2^32 + w' + 1/2) 2^-64, never 0 and never 1. Half of all tokens of a large vocabulary lie in the far tail of
    the softmax; 24-bit uniforms stop at g = 16.6 and lose them silently (arXiv:2409.02908). Here g reaches 45.

Gumbel
    E = -log(1 - U) is exponential and g = -log E is Gumbel. In float32 the two ends need two formulas:
    w < 2^28   E = U + U^2/2 + ... + U^6/6            relative truncation error below 2^-26, since U < 2^-4
    otherwise  E = -log((~w 2^32 + ~w' + 1/2) 2^-64)  the complement of U, exact in integers
    Every logarithm is :func:`log_float32`: a fixed sequence of IEEE multiplications and additions, never contracted.

Draws need an exponential besides, :func:`exp_float32`, which is as fixed.

Uniform token
    floor(V U) with w and w' of token 0: of a vocabulary of V <= 2^31 tokens each has probability 1 / V up to 2^-64.
"""

from __future__ import annotations

import hashlib
from numbers import Integral

import torch
from torch import Tensor

TOKEN_NOISE = 0
RANDOM_CONFIDENCE = 1
TRAINING_CORRUPTION = 2
DIFFUSION_TIME = 3
LIKELIHOOD_MASKS = 4
TILE_NOISE = 5
DROPOUT = 6
UNIFORM_TOKENS = 7

_MASK = 0xFFFFFFFF
_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

# log(1 + f) = f - f^2/2 + f^3 P(f) on [sqrt(1/2) - 1, sqrt(2) - 1]: Cephes `logf` (S. L. Moshier), highest power first.
_LOG_POLYNOMIAL = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_SQRT_HALF_BITS = 0x3F3504F3

# e^r = 1 + r + r^2 P(r) on [-ln 2 / 2, ln 2 / 2]: Cephes `expf`, highest power first.
_EXP_POLYNOMIAL = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
_LOG2_E = 1.44269504088896341
_TO_INTEGER = 12582912.0  # 1.5 2^23: adding it to a number below 2^22 rounds it to an integer, ties to even
_LOWEST_EXPONENT = -87.0


def as_int64(seed: int | Tensor) -> int | Tensor:
    """A seed given as a Python number, signed or unsigned, as the int64 with the same 64 bits; tensors pass through.

    Raises:
        TypeError: not an integer.
        ValueError: more than 64 bits.

    Example:
        >>> as_int64(2**64 - 1)
        -1
    """
    if isinstance(seed, Tensor):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"a seed must be an integer, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"a seed must fit into 64 bits, got {seed}")
    seed = int(seed)
    return seed - 2**64 if seed >= 2**63 else seed


def sample_seeds(tokens: Tensor, lengths: Tensor, run_seed: int) -> Tensor:
    """The seed of each sample, int64 [B]: a 64-bit BLAKE2b hash of the run's seed and its first `lengths`
    tokens.

    Args:
        tokens: int64 [B, L], on the CPU.
        lengths: int64 [B], how many of each row are not padding.
        run_seed: any integer of 64 bits.

    Example:
        >>> rows = torch.tensor([[5, 6, 0], [5, 6, 9]])
        >>> a, b = sample_seeds(rows, torch.tensor([2, 2]), run_seed=1).tolist()
        >>> a == b
        True
    """
    key = (as_int64(run_seed) % 2**64).to_bytes(8, "little")
    seeds = []
    for row, length in zip(tokens.numpy(), lengths.tolist(), strict=True):
        digest = hashlib.blake2b(row[:length].astype("<i8").tobytes(), digest_size=8, key=key).digest()
        seeds.append(int.from_bytes(digest, "little", signed=True))
    return torch.tensor(seeds, dtype=torch.int64)


def words(seed: Tensor, block: Tensor, position: Tensor, step: Tensor, stream: int) -> tuple[Tensor, ...]:
    """The four 32-bit words of each Philox block.

    Args:
        seed: int64, read as 64 unsigned bits.
        block: int64, token id div 4.
        position: int64, position in the canvas.
        step: int64, denoising step.
        stream: one of the eight stream numbers above.

    The tensors broadcast against each other; counters are taken modulo 2^32.

    Returns:
        Four int64 tensors of the broadcast shape, with values in [0, 2^32).

    Example:
        >>> zero = torch.zeros((), dtype=torch.int64)
        >>> [hex(int(w)) for w in words(zero, zero, zero, zero, stream=0)]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    seed, block, position, step = torch.broadcast_tensors(seed, block, position, step)
    c0, c1, c2 = block & _MASK, position & _MASK, step & _MASK
    c3 = torch.full_like(c0, stream)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        # int64 products wrap modulo 2^64, which keeps all 64 bits of a 32 x 32 bit product
        product0, product1 = c0 * _MULTIPLIER[0], c2 * _MULTIPLIER[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def log_float32(x: Tensor) -> Tensor:
    """Natural logarithm of positive normal float32 numbers, the same bits everywhere (relative error below 2e-7).

    x = 2^e m with m in [sqrt(1/2), sqrt(2)); log x = e ln 2 + log(1 + f), f = m - 1.

    Example:
        >>> log_float32(torch.tensor([1.0, 2.0]))
        tensor([0.0000, 0.6931])
    """
    bits = x.view(torch.int32)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    e = exponent.to(torch.float32)
    p = torch.full_like(f, _LOG_POLYNOMIAL[0])
    for coefficient in _LOG_POLYNOMIAL[1:]:
        p = p * f + coefficient
    square = f * f
    tail = (p * f) * square + e * _LN2_LOW - 0.5 * square
    return (f + tail) + e * _LN2_HIGH


def exp_float32(x: Tensor) -> Tensor:
    """e^x of float32 numbers x <= 0, the same bits everywhere (relative error below 2^-23); exactly 0 for x < -87.

    n = x log2 e rounded to an integer, r = x - n ln 2 with ln 2 in two parts, e^x = 2^n (1 + r + r^2 P(r)). The bound
    keeps results away from subnormal numbers, which GPUs may flush; -inf gives 0 and 0 gives 1.

    Example:
        >>> exp_float32(torch.tensor([0.0, -1.0, -torch.inf]))
        tensor([1.0000, 0.3679, 0.0000])
    """
    y = x.clamp(min=_LOWEST_EXPONENT)
    n = (y * _LOG2_E + _TO_INTEGER) - _TO_INTEGER
    r = (y - n * _LN2_HIGH) - n * _LN2_LOW
    p = torch.full_like(r, _EXP_POLYNOMIAL[0])
    for coefficient in _EXP_POLYNOMIAL[1:]:
        p = p * r + coefficient
    power = (p * (r * r) + r) + 1.0
    scaled = (power.view(torch.int32) + (n.to(torch.int32) << 23)).view(torch.float32)
    return torch.where(x < _LOWEST_EXPONENT, 0.0, scaled)


def gumbel_from_words(w: Tensor, partner: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, from a token's word and the next word of its block (int64 in [0, 2^32)).

    g = -log(-log(1 - U)), U = (w 2^32 + w' + 1/2) 2^-64; from -3.8 to 45.0. Derivation: head of this file.

    Example:
        >>> gumbel_from_words(torch.tensor([0, 2**31]), torch.tensor([0, 0]))
        tensor([45.0546,  0.3665])
    """
    u = _unit(w, partner)
    series = u * (1 / 6) + 1 / 5
    for coefficient in (1 / 4, 1 / 3, 1 / 2, 1.0):
        series = series * u + coefficient
    near_zero = series * u
    elsewhere = -log_float32(_unit(_MASK - w, _MASK - partner))
    return -log_float32(torch.where(w < 2**28, near_zero, elsewhere))


def gumbel(seed: Tensor, position: Tensor, step: Tensor, block: Tensor, own: Tensor, stream: int) -> Tensor:
    """Standard Gumbel noise of a stream, float32: that of word number `own` (0 to 3) of each block.

    The tensors, int64, broadcast against each other; :mod:`dllm_kernels.draw` says which block and word a token has.

    Example:
        >>> seed, token = torch.tensor(7), torch.arange(5)
        >>> gumbel(seed, torch.tensor(0), torch.tensor(0), token // 4, token % 4, TOKEN_NOISE).shape
        torch.Size([5])
    """
    seed, position, step, block, own = torch.broadcast_tensors(seed, position, step, block, own)
    four = torch.stack(words(seed, block, position, step, stream), dim=-1)
    w, partner = (four.gather(-1, place[..., None])[..., 0] for place in (own, (own + 1) % 4))
    return gumbel_from_words(w, partner)


def uniform(seed: Tensor, position: Tensor, step: Tensor, stream: int) -> Tensor:
    """Uniform float32 numbers in (0, 1): ((w div 512) + 1/2) 2^-23 with w the first word of block 0 of the stream.

    Args:
        seed, position, step: int64, broadcasting against each other.
        stream: RANDOM_CONFIDENCE, TRAINING_CORRUPTION or DIFFUSION_TIME.

    Example:
        >>> u = uniform(torch.tensor([1]), torch.arange(4), torch.tensor(0), RANDOM_CONFIDENCE)
        >>> bool(((u > 0) & (u < 1)).all())
        True
    """
    return unit_interval(words(seed, torch.zeros_like(seed), position, step, stream)[0])


def uniform_token(seed: Tensor, position: Tensor, step: Tensor, vocab_size: int) -> Tensor:
    """Tokens drawn from the whole vocabulary with equal probability, int64, of stream UNIFORM_TOKENS.

    (w V + (w' V div 2^32)) div 2^32 with V = `vocab_size`, from 1 to 2^31, in int64: floor(V U) up to the half.

    Args:
        seed, position, step: int64, broadcasting against each other.

    Example:
        >>> drawn = uniform_token(torch.tensor(7), torch.arange(1000), torch.tensor(0), 10)
        >>> drawn.min().item(), drawn.max().item()
        (0, 9)
    """
    if not 1 <= vocab_size <= 2**31:
        raise ValueError(f"vocab_size must be from 1 to 2^31, got {vocab_size}")
    w, partner, *_ = words(seed, torch.zeros_like(seed), position, step, UNIFORM_TOKENS)
    return (w * vocab_size + (partner * vocab_size >> 32)) >> 32


def unit_interval(w: Tensor) -> Tensor:
    """((w div 512) + 1/2) 2^-23, float32 in (0, 1), of a word.

    Example:
        >>> unit_interval(torch.tensor([2**31]))
        tensor([0.5000])
    """
    return ((w >> 9).to(torch.float32) + 0.5) * 2.0**-23


def _unit(high: Tensor, low: Tensor) -> Tensor:
    """(high 2^32 + low + 1/2) 2^-64 in float32: each word rounded once, each product exact, one rounded sum."""
    return high.to(torch.float32) * 2.0**-32 + (low.to(torch.float32) + 0.5) * 2.0**-64
