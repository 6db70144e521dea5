"""The draw of a token from softmax(l / T), bit for bit: Gumbel-max in two levels, over tiles of 16 tokens.

This file is the specification, in plain torch; the C++ and Triton kernels draw the same tokens from the same logits.
l are the logits after everything that hides tokens (suppress, top-k, top-p) with NaN as -inf and +inf as the largest
finite float32. At T = 0, and where T is not a number above 0, the token is the argmax of l. Otherwise T is clamped to
[1e-30, 1e30].

Tiles
    v = 512 b + 128 k + 4 r + j,   r in 0..31, k and j in 0..3.
    Tile t = 32 b + r holds the 16 tokens over k and j; tokens beyond the vocabulary count as -inf. So the tiles of a
    block of 512 adjacent tokens are theirs alone, and the order of tiles is that of their first tokens. r is a lane of
    a GPU's warp, j an element of its load and k a load; a CPU's vector sums over k first.

Tile noise
    G_t is Gumbel noise of 64 bits as in philox.py, stream TILE_NOISE, at the row's seed, position and step. With
    b = 32 s + 8 i + g, i in 0..3 and g in 0..7: Philox block 256 s + 32 g + r in place of token div 4, own word number
    i, partner word number (i + 1) mod 4. One Philox block serves four tiles, 4096 tokens apart: a GPU's thread that
    reads 4096 tokens at a time together with others has them one after the other.

Tile score, float32; fl marks each rounding, and no multiplication is contracted with an addition
    m    = max l over the tile; where m = -inf the score is -inf
    e_kj = exp_float32(fl(fl(l_kj - m) rate)),   rate = fl(1 / T)
    S_j  = fl(fl(e_0j + e_1j) + fl(e_2j + e_3j))
    S    = fl(fl(S_0 + S_1) + fl(S_2 + S_3)),   1 <= S <= 16
    score = fl(m + fl(T fl(log_float32(S) + G))), at least the lowest finite float32
    exp_float32 and log_float32 as in philox.py. The highest score wins, on ties the lowest t.

Token
    In the tile that won: argmax of fl(l + fl(T g)), at least the lowest finite float32 where l > -inf, with g the noise
    of the token, stream TOKEN_NOISE as in philox.py. On ties the lowest token.

Law. Write Z_t for the sum over tile t of e^(l_v / T) and Z for the sum of all Z_t. A tile's score over T is
log Z_t + G_t, so the first level draws tile t with probability Z_t / Z (Gumbel-max). The second draws token v of it
with probability e^(l_v / T) / Z_t (Gumbel-max again). The two streams are independent, so token v comes with the
product e^(l_v / T) / Z: softmax(l / T), as one Gumbel for each token gives it, from a sixteenth of the noise.

Error. S has a relative error below 2^-20: a gap x = (l - m) / T has three roundings, which move e^x by 3 |x| e^x 2^-24,
at most 2^-24 1.2. The last rounding moves a score by up to 2^-24 |score|, as with one Gumbel for each token, and a
tile's odds by that over T. Tokens more than 87 T below their tile's largest are not counted in S: odds below e^-87.

float64 logits are drawn by the same formulae in float64, with the library's exponential and logarithm and the same
float32 noise: the truth of tests.

Source: Maddison, Tarlow and Minka, "A* sampling", NeurIPS 2014 (the maximum of a set of Gumbels is a Gumbel).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels import philox
from dllm_kernels.logits import STATISTICS_TEMPERATURES, as_numbers

TOKENS = 16  # of a tile
BLOCK = 512  # adjacent tokens that make 32 tiles
_LOWEST = torch.finfo(torch.float32).min


def draw(logits: Tensor, temperature: float | Tensor, seeds: Tensor, positions: Tensor, step: Tensor) -> Tensor:
    """The token of each row, int64 [R]: what :func:`dllm_kernels.gumbel_argmax` draws.

    Args:
        logits: [R, V], float32, bfloat16, float16 (drawn in float32) or float64. A row without a logit above -inf
            gets token 0.
        temperature: one for all or [R].
        seeds, positions, step: int64 of shape [R] or broadcasting to it.

    Example:
        >>> logits, where = torch.zeros(3, 100), (torch.tensor([7]), torch.arange(3), torch.tensor([0]))
        >>> draw(logits, 1.0, *where).shape, draw(logits, 0.0, *where).tolist()
        (torch.Size([3]), [0, 0, 0])
    """
    l = as_numbers(logits)
    T = clamped(torch.as_tensor(temperature, dtype=torch.float32, device=l.device).expand(len(l))).to(l.dtype)
    where = [x.expand(len(l)) for x in (seeds, positions, step)]
    noisy = T > 0
    if not noisy.any():
        return l.argmax(-1)
    T = torch.where(noisy, T, 1.0)[:, None]
    tiles, of_tiles = in_tiles(l)
    best = tile_score(of_tiles, T, tile_noise(tiles, *where)).argmax(-1)  # the lowest of equals
    inside = of_tiles.gather(1, best[:, None, None].expand(-1, 1, TOKENS))[:, 0]
    tokens = tokens_of(best)
    own = token_score(inside, T, token_noise(tokens, *where)).argmax(-1, keepdim=True)
    return torch.where(noisy, tokens.gather(1, own)[:, 0], l.argmax(-1))


def in_tiles(l: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of all tiles [n] and their logits [R, n, 16] of l [R, V].

    Example:
        >>> tiles, of_tiles = in_tiles(torch.arange(6.0)[None])
        >>> tiles.shape, of_tiles[0, :3, :4].tolist()
        (torch.Size([32]), [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, -inf, -inf], [-inf, -inf, -inf, -inf]])
    """
    tiles = torch.arange(-(-l.shape[1] // BLOCK) * 32, device=l.device)
    missing = l.new_full((len(l), TOKENS * len(tiles) - l.shape[1]), -torch.inf)
    return tiles, torch.cat([l, missing], dim=1)[:, tokens_of(tiles)]


def tile_score(l: Tensor, T: Tensor, noise: Tensor) -> Tensor:
    """Score of tiles, [...], of their logits l [..., 16] in the order of tokens, clamped T [...] and noise [...].

    Example:
        >>> tile_score(torch.zeros(16), torch.tensor(1.0), torch.tensor(0.0))
        tensor(2.7726)
    """
    m = l.amax(-1)
    top = torch.where(m > -torch.inf, m, 0.0)
    exp, log = (torch.exp, torch.log) if l.dtype == torch.float64 else (philox.exp_float32, philox.log_float32)
    e = exp((l - top[..., None]) * (1 / T)[..., None]).unflatten(-1, (4, 4))  # [..., k, j]
    of_j = (e[..., 0, :] + e[..., 1, :]) + (e[..., 2, :] + e[..., 3, :])
    total = (of_j[..., 0] + of_j[..., 1]) + (of_j[..., 2] + of_j[..., 3])
    score = top + T * (log(torch.where(m > -torch.inf, total, 1.0)) + noise)
    return torch.where(m > -torch.inf, score.clamp(min=_LOWEST), -torch.inf)


def token_score(l: Tensor, T: Tensor, noise: Tensor) -> Tensor:
    """l + T g, at least the lowest finite float32 where l is above -inf; clamped T.

    Example:
        >>> token_score(torch.tensor([1.0, -torch.inf]), torch.tensor(0.5), torch.tensor(4.0))
        tensor([3., -inf])
    """
    return torch.where(l > -torch.inf, (l + T * noise).clamp(min=_LOWEST), -torch.inf)


def tile_of(token: Tensor) -> Tensor:
    """The tile that each token belongs to.

    Example:
        >>> tile_of(torch.tensor([0, 3, 4, 128, 511, 512])).tolist()
        [0, 0, 1, 0, 31, 32]
    """
    return token // BLOCK * 32 + token % 128 // 4


def tokens_of(tile: Tensor) -> Tensor:
    """The 16 tokens of each tile in ascending order, int64 [..., 16].

    Example:
        >>> tokens_of(torch.tensor(33)).tolist()
        [516, 517, 518, 519, 644, 645, 646, 647, 772, 773, 774, 775, 900, 901, 902, 903]
    """
    number = torch.arange(TOKENS, device=tile.device)
    return (tile // 32 * BLOCK + tile % 32 * 4)[..., None] + number // 4 * 128 + number % 4


def tile_noise(tile: Tensor, seeds: Tensor, positions: Tensor, step: Tensor) -> Tensor:
    """G of these tiles, float32 [R, n], of tile [n] or [R, n]; seeds, positions and step [R] or broadcasting to it.

    Example:
        >>> tile_noise(torch.arange(64), *(torch.tensor([x]) for x in (7, 0, 0))).shape
        torch.Size([1, 64])
    """
    b, r = tile // 32, tile % 32
    where = (seeds[:, None], positions[:, None], step[:, None])
    return philox.gumbel(*where, b // 32 * 256 + b % 8 * 32 + r, b // 8 % 4, philox.TILE_NOISE)


def token_noise(token: Tensor, seeds: Tensor, positions: Tensor, step: Tensor) -> Tensor:
    """g of these tokens, float32 [R, n], of token [n] or [R, n]; seeds, positions and step [R] or broadcasting to it.

    Example:
        >>> token_noise(torch.arange(9), *(torch.tensor([x]) for x in (7, 0, 0))).shape
        torch.Size([1, 9])
    """
    where = (seeds[:, None], positions[:, None], step[:, None])
    return philox.gumbel(*where, token // 4, token % 4, philox.TOKEN_NOISE)


def clamped(temperature: Tensor) -> Tensor:
    """T of each row, 0 where it is not above 0.

    Example:
        >>> clamped(torch.tensor([0.5, -1.0, torch.nan, torch.inf]))
        tensor([5.0000e-01, 0.0000e+00, 0.0000e+00, 1.0000e+30])
    """
    return torch.where(temperature > 0, temperature.clamp(*STATISTICS_TEMPERATURES), 0.0)
