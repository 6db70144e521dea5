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
    i, partner word number (i + 1) mod 4. One Philox block serves four tiles, 4096 tokens apart: those of a thread that
    reads 4096 tokens at a time together with others.

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
    n_rows, vocab_size = l.shape
    given = torch.as_tensor(temperature, dtype=torch.float32, device=l.device).expand(n_rows)
    greedy = l.argmax(-1)
    if not (given > 0).any():
        return greedy
    T = torch.where(given > 0, given.clamp(*STATISTICS_TEMPERATURES), 1.0).to(l.dtype)
    where = [x.expand(n_rows) for x in (seeds, positions, step)]
    tile = tile_scores(l, T, tile_noise(*where, vocab_size)).argmax(-1)  # the lowest of equals
    token = tokens_of(tile)
    inside = l.gather(1, token.clamp(max=vocab_size - 1)).masked_fill(token >= vocab_size, -torch.inf)
    noisy = (inside + T[:, None] * token_noise(token, *where)).clamp(min=_LOWEST)
    best = torch.where(inside > -torch.inf, noisy, -torch.inf).argmax(-1, keepdim=True)
    return torch.where(given > 0, token.gather(1, best)[:, 0], greedy)


def tile_scores(l: Tensor, T: Tensor, noise: Tensor) -> Tensor:
    """Score of each tile, [R, tiles], of l [R, V], T [R] (clamped) and tile noise [R, tiles].

    Example:
        >>> tile_scores(torch.zeros(1, 16), torch.ones(1), torch.zeros(1, 32))[0, :5]
        tensor([1.3863, 1.3863, 1.3863, 1.3863,   -inf])
    """
    n_rows, vocab_size = l.shape
    blocks = -(-vocab_size // BLOCK)
    padded = l.new_full((n_rows, blocks * BLOCK), -torch.inf)
    padded[:, :vocab_size] = l
    x = padded.view(n_rows, blocks, 4, 32, 4).movedim(2, -1).flatten(1, 2)  # [R, tile, j, k]
    m = x.amax((-2, -1))
    top = torch.where(m > -torch.inf, m, 0.0)
    exp, log = (torch.exp, torch.log) if l.dtype == torch.float64 else (philox.exp_float32, philox.log_float32)
    e = exp((x - top[..., None, None]) * (1 / T)[:, None, None, None])
    of_j = (e[..., 0] + e[..., 1]) + (e[..., 2] + e[..., 3])
    total = (of_j[..., 0] + of_j[..., 1]) + (of_j[..., 2] + of_j[..., 3])
    total = torch.where(m > -torch.inf, total, 1.0)
    score = (top + T[:, None] * (log(total) + noise)).clamp(min=_LOWEST)
    return torch.where(m > -torch.inf, score, -torch.inf)


def tile_noise(seeds: Tensor, positions: Tensor, step: Tensor, vocab_size: int) -> Tensor:
    """Gumbel noise of every tile of a vocabulary, float32 [R, tiles]: 32 tiles for every 512 tokens begun.

    Args:
        seeds, positions, step: int64 of shape [R] or broadcasting to it.

    Example:
        >>> tile_noise(*(torch.tensor([x]) for x in (7, 0, 0)), vocab_size=513).shape
        torch.Size([1, 64])
    """
    blocks = -(-vocab_size // BLOCK)
    lanes = torch.arange(-(-blocks // 32) * 256, device=seeds.device)
    where = (seeds[:, None], lanes, positions[:, None], step[:, None])
    four = torch.stack(philox.words(*where, philox.TILE_NOISE), dim=1)  # [R, i, 256 s + 32 g + r]
    noise = philox.gumbel_from_words(four, four.roll(-1, dims=1))
    in_order = noise.unflatten(-1, (-1, 256)).transpose(1, 2).flatten(1)  # [R, 32 (32 s + 8 i + g) + r]
    return in_order[:, : blocks * 32]


def tokens_of(tile: Tensor) -> Tensor:
    """The 16 tokens of each tile in ascending order, int64 [..., 16].

    Example:
        >>> tokens_of(torch.tensor(33)).tolist()
        [516, 517, 518, 519, 644, 645, 646, 647, 772, 773, 774, 775, 900, 901, 902, 903]
    """
    number = torch.arange(TOKENS, device=tile.device)
    return (tile // 32 * BLOCK + tile % 32 * 4)[..., None] + number // 4 * 128 + number % 4


def token_noise(token: Tensor, seeds: Tensor, positions: Tensor, step: Tensor) -> Tensor:
    """Gumbel noise of these tokens, float32 [R, n], of token [R, n]; seeds, positions, step [R].

    Example:
        >>> where = [torch.tensor([x]) for x in (7, 0, 0)]
        >>> torch.equal(token_noise(torch.arange(9)[None], *where), philox.gumbel(*where, 9))
        True
    """
    where = (seeds[:, None], token // 4, positions[:, None], step[:, None])
    four = torch.stack(philox.words(*where, philox.TOKEN_NOISE), dim=-1)
    own = (token % 4)[..., None]
    return philox.gumbel_from_words(*(four.gather(-1, place)[..., 0] for place in (own, (own + 1) % 4)))
