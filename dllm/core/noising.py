"""Corruption of training data, q(x_t | x_0): tokens are masked, or replaced by uniform ones, by the library's own
random stream.

The draw for a sample depends on the run's seed, the sample's tokens and the epoch alone, not on the batch, the rank,
padding or resumption. A hash of the seed and the tokens is the Philox key, the epoch is the step counter, and a token's
position is the position (:mod:`dllm_kernels.philox`, streams TRAINING_CORRUPTION, UNIFORM_TOKENS and DIFFUSION_TIME).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dllm.core.schedulers import BaseAlphaScheduler
from dllm_kernels import philox


class Noised(NamedTuple):
    """A corrupted batch.

    tokens: int64 [B, L], x_t: x_0 with the mask token where `masked`.
    masked: bool [B, L].
    """

    tokens: Tensor
    masked: Tensor


def real_lengths(tokens: Tensor, attention_mask: Tensor | None, pad_id: int | None) -> Tensor:
    """The length of each row of [B, L] without its trailing padding, int64 [B].

    Padding is whatever the attention mask excludes, and padding tokens at the end of a row. So a sample has the same
    length whether its padding is attended to (as EOS that is trained) or not.

    Example:
        >>> real_lengths(torch.tensor([[5, 0, 6, 0, 0]]), None, pad_id=0)
        tensor([3])
    """
    real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask != 0
    if pad_id is not None:
        real = real & (tokens != pad_id)
    column = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    return (real * column).max(1).values if tokens.shape[1] else column.new_zeros(len(tokens))


def diffusion_times(
    seeds: Tensor, epoch: int, *, low: float, high: float, antithetic: bool = False, blocks: int | None = None
) -> Tensor:
    """Diffusion times t = low + (high - low) U, float32 [B], or [B, blocks] with a time for each block.

    Args:
        seeds: int64 [B], of the samples.
        epoch: the pass over the data.
        low, high: the range of t, 0 <= low < high <= 1; MDLM's is (1e-3, 1).
        antithetic: U becomes (U + i) / n mod 1 for row i of n, so that the times of a batch are spread evenly. A
            sample's time then depends on its place in the batch; the tokens masked at a given time do not.
        blocks: the number of blocks of every sample; None for one time per sample. One block gives the same time.

    Source: MDLM (arXiv:2406.07524), which calls the even spread antithetic; BD3-LM (arXiv:2503.09573) for blocks.

    Example:
        >>> t = diffusion_times(torch.arange(4), 0, low=0.0, high=1.0, antithetic=True)
        >>> (t * 4).floor()
        tensor([0., 1., 2., 3.])
    """
    block = torch.arange(1 if blocks is None else blocks, device=seeds.device)
    u = philox.uniform(seeds[:, None], block, torch.full_like(block, epoch), philox.DIFFUSION_TIME)
    u = u[:, 0] if blocks is None else u
    if antithetic:
        u = (u + torch.arange(u.numel(), device=u.device).view_as(u)) / u.numel() % 1
    return (low + (high - low) * u).clamp(low, high)


def corrupt(
    tokens: Tensor,
    maskable: Tensor,
    times: Tensor,
    *,
    seeds: Tensor,
    epoch: int,
    scheduler: BaseAlphaScheduler,
    mask_id: int,
) -> Noised:
    """Mask each maskable token with probability 1 - alpha(t) of its sample.

    Args:
        tokens: int64 [B, L], x_0.
        maskable: bool [B, L], the tokens that may be masked.
        times: floating point [B], or [B, L] for a time per token.
        seeds: int64 [B], of the samples.
        epoch: the pass over the data.
        scheduler: alpha.
        mask_id: the mask token.

    Returns:
        :class:`Noised`.

    Source: MDLM (arXiv:2406.07524).

    Example:
        >>> from dllm.core.schedulers import LinearAlphaScheduler
        >>> x = torch.tensor([[5, 6, 7, 8]])
        >>> everything = dict(seeds=torch.tensor([1]), epoch=0, scheduler=LinearAlphaScheduler(), mask_id=3)
        >>> corrupt(x, x > 5, torch.ones(1), **everything).tokens
        tensor([[5, 3, 3, 3]])
    """
    position = torch.arange(tokens.shape[1], device=tokens.device)
    u = philox.uniform(seeds[:, None], position, torch.full_like(position, epoch), philox.TRAINING_CORRUPTION)
    times = times if times.dim() == 2 else times[:, None]
    masked = maskable & (u < 1 - scheduler.alpha(times))
    return Noised(torch.where(masked, mask_id, tokens), masked)


def replace_uniformly(
    tokens: Tensor, times: Tensor, *, positions: Tensor, seeds: Tensor, epoch: int, vocab_size: int
) -> Noised:
    """Replace each token with probability t of its sample by one drawn from the whole vocabulary, itself included.

    Args:
        tokens: int64 [B, L].
        times: float32 [B].
        positions: int64 [B, L], of the tokens in their samples.
        seeds: int64 [B], of the samples.
        epoch: the pass over the data.
        vocab_size: the number of token ids.

    Returns:
        :class:`Noised`, with `masked` where a token was replaced, be it by itself.

    Source: uniform diffusion as in D3PM (arXiv:2107.03006), with alpha(t) = 1 - t.

    Example:
        >>> x, address = torch.tensor([[5, 6, 7, 8]]), dict(positions=torch.arange(4)[None], seeds=torch.tensor([1]))
        >>> replace_uniformly(x, torch.zeros(1), **address, epoch=0, vocab_size=10).tokens
        tensor([[5, 6, 7, 8]])
        >>> bool(replace_uniformly(x, torch.ones(1), **address, epoch=0, vocab_size=10).masked.all())
        True
    """
    step = torch.full_like(positions, epoch)
    replaced = philox.uniform(seeds[:, None], positions, step, philox.TRAINING_CORRUPTION) < times[:, None]
    noise = philox.uniform_token(seeds[:, None], positions, step, vocab_size)
    return Noised(torch.where(replaced, noise, tokens), replaced)
