"""Plain PyTorch: what people write, and what torch.compile makes of it."""

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
    """The head, then :func:`choose`."""
    return choose(F.linear(hidden, weight), temperature)


def keep(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Dream's filters: the logits with -inf where one is cut off."""
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    if top_k is not None:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    return logits


def weighted_loss(hidden: Tensor, weight: Tensor, targets: Tensor, row_weight: Tensor) -> Tensor:
    """The head on the masked rows alone, and their weighted cross-entropy in float32."""
    return weighted_loss_of_logits(F.linear(hidden, weight), targets, row_weight)


def weighted_loss_of_logits(logits: Tensor, targets: Tensor, row_weight: Tensor) -> Tensor:
    """Weighted cross-entropy of given logits [R, V], in float32."""
    return (F.cross_entropy(logits.float(), targets, reduction="none") * row_weight).sum()


def chunked_mean_loss(hidden: Tensor, weight: Tensor, targets: Tensor, row_weight: Tensor) -> Tensor:
    """torch's own F.linear_cross_entropy in chunks; it knows no row weights."""
    return F.linear_cross_entropy(hidden, weight, targets, options=torch.nn.LinearCrossEntropyOptions())


def has_chunked_loss() -> bool:
    """Whether this torch has :func:`chunked_mean_loss`."""
    return hasattr(torch.nn, "LinearCrossEntropyOptions")


def compiled(function: Callable[..., object], backend: str) -> Callable[..., object]:
    """`function` under torch.compile, compiled for the shapes at hand."""
    torch._dynamo.reset()  # else the next shape would be compiled as a dynamic one
    return torch.compile(function, backend=backend)
