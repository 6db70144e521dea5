"""The masks that the likelihood of a target is read from, with their weights, and what is concluded from them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dllm.core.likelihood import published
from dllm.core.likelihood.allocation import Stratum, allocate
from dllm.core.likelihood.config import ORDERS, LikelihoodConfig
from dllm.core.likelihood.masks import Mask, even_masks, permutations
from dllm.core.likelihood.weights import size_weights

_SIZES = 2**20  # purposes of random numbers from here on: the sizes of a stratum, not its masks


class Design(NamedTuple):
    """Masks and what they count.

    n: positions that may be masked.
    masks: sets of positions of 0..n-1. The empty one costs nothing.
    reads: of each mask, the positions whose cross-entropy counts: all of the mask, or one where tokens come in order.
    weights: the log-likelihood is - sum over masks of weight x summed cross-entropy of what is read.
    strata: the number of each mask's stratum.
    fractions: of the masks of each stratum, the share that is there; 0 where it is small, or sizes are several.
    even: masks are spread evenly over the positions, stratum by stratum; otherwise they are drawn independently.
    exact: nothing is estimated.
    """

    n: int
    masks: tuple[Mask, ...]
    reads: tuple[Mask, ...]
    weights: tuple[float, ...]
    strata: tuple[int, ...]
    fractions: tuple[float, ...]
    even: bool
    exact: bool


def is_exact(n: int, config: LikelihoodConfig) -> bool:
    """Whether the sum over all masks of n positions is taken."""
    return config.likelihood == "exact" and (n <= config.exact_up_to or 2**n - 1 <= config.masks)


def design(n: int, config: LikelihoodConfig, seed: int) -> Design:
    """The masks of a target of which n tokens may be masked.

    Example:
        >>> two = design(2, LikelihoodConfig(), seed=0)
        >>> two.masks, two.weights
        (((0,), (1,), (0, 1)), (0.5, 0.5, 0.5))
        >>> len(design(40, LikelihoodConfig(), seed=0).masks)
        64
    """
    if config.likelihood in ORDERS:
        return _in_order(n, config.likelihood)
    if is_exact(n, config):
        return _all_masks(n, config.form, config.sampling_eps)
    keys = config.likelihood, config.form, config.masks, config.published_rows, config.sampling_eps
    return _drawn(n, seed, *keys)


@functools.lru_cache(maxsize=64)
def _in_order(n: int, order: str) -> Design:
    """Token i is read where it and all later tokens are masked ("ar_ftb"), or it and all earlier ones ("ar_btf")."""
    masks = tuple(tuple(range(i, n) if order == "ar_ftb" else range(i + 1)) for i in range(n))
    reads = tuple((i,) for i in range(n))
    return Design(n, masks, reads, (1.0,) * n, (0,) * n, (1.0,), even=True, exact=True)


@functools.lru_cache(maxsize=64)
def _all_masks(n: int, form: str, eps: float) -> Design:
    masks = [mask for x in range(1, n + 1) for mask in itertools.combinations(range(n), x)]
    of_size = size_weights(form, n, eps)
    weights = tuple(of_size[len(mask) - 1] / math.comb(n, len(mask)) for mask in masks)
    strata = tuple(len(mask) - 1 for mask in masks)
    return Design(n, tuple(masks), tuple(masks), weights, strata, (1.0,) * n, even=True, exact=True)


@functools.lru_cache(maxsize=256)  # choices of a question ask for the same
def _drawn(n: int, seed: int, likelihood: str, form: str, mc_num: int, batch: int, eps: float) -> Design:
    if likelihood == "as-published":
        masks, weights = published.draw(form, n, seed, mc_num=mc_num, batch=batch, eps=eps)
        return Design(n, masks, masks, weights, (0,) * mc_num, (0.0,), even=False, exact=False)
    strata, of_size = allocate(n, mc_num), size_weights(form, n, eps)
    sizes = [_sizes(stratum, number, seed) for number, stratum in enumerate(strata)]
    masks, weights, numbers = [], [], []
    for number, (stratum, group) in enumerate(zip(strata, even_masks(n, sizes, seed), strict=True)):
        masks += group
        weights += [len(stratum.sizes) * of_size[len(mask) - 1] / stratum.rows for mask in group]
        numbers += [number] * stratum.rows
    fractions = tuple(stratum.rows / stratum.masks for stratum in strata)
    return Design(n, tuple(masks), tuple(masks), tuple(weights), tuple(numbers), fractions, even=True, exact=False)


def _sizes(stratum: Stratum, number: int, seed: int) -> list[int]:
    """The size of each row of a stratum; each row's is uniform, and they differ as far as there are so many."""
    if len(stratum.sizes) == 1:
        return [stratum.sizes[0]] * stratum.rows
    order = permutations(seed, [number], len(stratum.sizes), purpose=_SIZES)[0]
    return [stratum.sizes[order[row % len(order)]] for row in range(stratum.rows)]


def conclude(plan: Design, losses: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The log-likelihood and its standard error.

    Args:
        plan: the masks.
        losses: of each mask, the cross-entropies of the positions that are read, in order.

    The standard error of evenly spread masks has two parts. Cross-entropies are described by c_i + d_h, position i and
    stratum h, by least squares. What they differ from it by is taken to vary between masks of a stratum as if these
    were drawn at random without replacement:

    .. math::
        \\sum_h (1 - \\text{fraction}_h)\\, n_h\\, s_h^2

    with s_h^2 the variance over its n_h masks of weight x summed rest. The c_i cancel where all positions are masked
    with the same weight; where they are not, position i with b_i in a stratum, the rest is exactly that of a random
    labelling: sum (b_i - mean)^2 sum (c_i - mean)^2 / (n - 1). Neither part counts the balance of what is not additive,
    so the result is rather too large. Masks as published count as independent, which is too large as well: their
    sizes are spread evenly.

    Example:
        >>> conclude(design(1, LikelihoodConfig(), seed=0), [[2.5]])
        (-2.5, 0.0)
    """
    weights, sums = torch.tensor(plan.weights).double(), torch.tensor([math.fsum(row) for row in losses]).double()
    value = -math.fsum(w * math.fsum(row) for w, row in zip(plan.weights, losses, strict=True))
    if plan.exact:
        return value, 0.0
    if not plan.even:
        rows = len(losses)
        return value, math.sqrt(rows * float((weights * sums).var())) if rows > 1 else math.nan
    return value, math.sqrt(_variance(plan, losses))


def _variance(plan: Design, losses: Sequence[Sequence[float]]) -> float:
    cells = [row * plan.n + i for row, mask in enumerate(plan.masks) for i in mask]
    index, read = torch.tensor(cells), torch.tensor([loss for row in losses for loss in row]).double()
    held, loss = (torch.zeros(len(losses) * plan.n).double() for _ in range(2))
    held[index], loss[index] = 1.0, read
    held, loss = held.view(-1, plan.n), loss.view(-1, plan.n)
    strata = torch.tensor(plan.strata)
    position, rest = _additive(held, loss, strata)
    weights = torch.tensor(plan.weights).double()[:, None]
    spread = float(((position - position.mean()) ** 2).sum()) / max(plan.n - 1, 1)
    variance = 0.0
    for number, fraction in enumerate(plan.fractions):
        members = strata == number
        if fraction == 1:
            continue
        if int(members.sum()) < 2:
            return math.nan
        counted = (weights * held)[members].sum(0)
        variance += spread * float(((counted - counted.mean()) ** 2).sum())
        variance += (1 - fraction) * int(members.sum()) * float((weights * rest)[members].sum(1).var())
    return variance


def _additive(held: Tensor, loss: Tensor, strata: Tensor) -> tuple[Tensor, Tensor]:
    """The c [n] of the description c_i + d_h of `loss` [rows, n] where `held`, and what is left of it [rows, n]."""
    stratum = torch.nn.functional.one_hot(strata).double()
    count, total = stratum.T @ held, stratum.T @ loss  # [strata, n]
    position = torch.zeros(held.shape[1]).double()
    for _ in range(20):  # converges fast: designs are nearly balanced
        level = (total - count * position).sum(1) / count.sum(1).clamp(min=1)
        position = (total - count * level[:, None]).sum(0) / count.sum(0).clamp(min=1)
    return position, (loss - position - level[strata][:, None]) * held
