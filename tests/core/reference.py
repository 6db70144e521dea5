"""The training objective in plain PyTorch, a sample at a time, nothing batched, padded or fused: the trainer's judge.

Written from the formulae alone. Of the library it uses the Philox words only, which have tests of their own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm_kernels import philox

ALPHA = {
    "linear": (lambda t: 1 - t, lambda t: -1.0),
    "cosine": (
        lambda t: 1 - math.cos(math.pi / 2 * (1 - t)),
        lambda t: -math.pi / 2 * math.sin(math.pi / 2 * (1 - t)),
    ),
}


class Objective(NamedTuple):
    """How a run is trained."""

    norm: str = "token"
    weight: str = "scheduler"
    alpha: str = "linear"
    right_shift: bool = False
    low: float = 1e-3
    high: float = 1.0


class Corrupted(NamedTuple):
    """One sample with its time and masks."""

    tokens: list[int]
    labels: list[int]
    noised: list[int]
    masked: list[int]
    weight: list[float]  # of each masked token


def uniform(seed: int, position: int, epoch: int, stream: int) -> float:
    arguments = [torch.tensor(value) for value in (seed, 0, position, epoch)]
    first = int(philox.words(*arguments, stream)[0])
    return ((first >> 9) + 0.5) / 2**23


def corrupted(
    tokens: Sequence[int], labels: Sequence[int], seed: int, epoch: int, mask_id: int, objective: Objective
) -> Corrupted:
    alpha, derivative = ALPHA[objective.alpha]
    content = b"".join(token.to_bytes(8, "little") for token in tokens)
    digest = hashlib.blake2b(content, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    key = int.from_bytes(digest, "little", signed=True)
    t = objective.low + (objective.high - objective.low) * uniform(key, 0, epoch, 3)
    noised, masked = list(tokens), []
    for position, label in enumerate(labels):
        if label != -100 and uniform(key, position, epoch, 2) < 1 - alpha(t):
            noised[position] = mask_id
            masked.append(position)
    if objective.weight.startswith("cart"):
        weight = cart(len(tokens), masked, p=float(objective.weight[len("cart[geo_p:") : -1]))
    else:
        weight = [1.0 if objective.weight == "uniform" else -derivative(t) / (1 - alpha(t) + 1e-6)] * len(masked)
    return Corrupted(list(tokens), list(labels), noised, masked, weight)


def cart(length: int, masked: Sequence[int], p: float) -> list[float]:
    """Dream's weights of the masked positions, by the sum over all visible ones."""
    visible = [j for j in range(length) if j not in masked]
    return [sum(p / 2 * (1 - p) ** (abs(i - j) - 1) for j in visible) for i in masked]


class Plain(NamedTuple):
    """One optimizer step: each sample's part of its loss [B] and of its NLL [B]; both sum to the whole."""

    loss: Tensor
    nll: Tensor


def plain_loss(model: nn.Module, samples: Sequence[Corrupted], objective: Objective) -> Plain:
    """The loss of all samples as one optimizer step, and their NLL."""
    terms, sums, maskable = [], [], []
    for sample in samples:
        logits = model(input_ids=torch.tensor([sample.noised])).logits[0]
        reads = [max(p - 1, 0) if objective.right_shift else p for p in sample.masked]
        targets = torch.tensor([sample.tokens[p] for p in sample.masked], dtype=torch.int64)
        nll = F.cross_entropy(logits[reads], targets, reduction="none")
        total = (torch.tensor(sample.weight, dtype=nll.dtype) * nll).sum()
        count = sum(label != -100 for label in sample.labels)
        terms.append(total / max(count, 1) if objective.norm == "sequence" else total)
        sums.append(total.detach())
        maskable.append(count)
    divisor = sum(maskable) if objective.norm == "token" else len(samples)
    return Plain(torch.stack(terms) / max(divisor, 1), torch.stack(sums) / max(sum(maskable), 1))


def gradients(model: nn.Module) -> Tensor:
    """All gradients as one vector, float64."""
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
