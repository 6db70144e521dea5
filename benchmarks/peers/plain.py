"""Plain PyTorch, eager and under torch.compile."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import card_loop
from benchmarks.baselines.dream import keep_top_p


def choose(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The model cards' chain over logits [R, V]: a token by float64 Gumbel noise, and its probability."""
    masked = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    tokens = card_loop.TorchNoise().choose(logits, temperature, masked, step=0)
    return tokens, card_loop.token_probability(logits, tokens)


def head_and_choose(hidden: Tensor, weight: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The LM head, then :func:`choose`."""
    return choose(F.linear(hidden, weight), temperature)


def keep(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Dream's top-p and top-k filters: the logits with -inf at dropped tokens."""
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    if top_k is not None:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    return logits


def weighted_loss(hidden: Tensor, weight: Tensor, targets: Tensor, row_weight: Tensor) -> Tensor:
    """The LM head on the masked rows, and their weighted cross-entropy in float32."""
    return weighted_loss_of_logits(F.linear(hidden, weight), targets, row_weight)


def weighted_loss_of_logits(logits: Tensor, targets: Tensor, row_weight: Tensor) -> Tensor:
    """Weighted cross-entropy of given logits [R, V], in float32."""
    return (F.cross_entropy(logits.float(), targets, reduction="none") * row_weight).sum()


def chunked_mean_loss(hidden: Tensor, weight: Tensor, targets: Tensor, row_weight: Tensor) -> Tensor:
    """F.linear_cross_entropy of torch, in chunks; it has no row weights."""
    return F.linear_cross_entropy(hidden, weight, targets, options=torch.nn.LinearCrossEntropyOptions())


def has_chunked_loss() -> bool:
    """Whether this version of torch can run :func:`chunked_mean_loss`."""
    return hasattr(torch.nn, "LinearCrossEntropyOptions")


def compiled(function: Callable[..., object], backend: str) -> Callable[..., object]:
    """`function` under torch.compile, with static shapes."""
    torch._dynamo.reset()  # else the next shape would be compiled with dynamic sizes
    return torch.compile(function, backend=backend)
