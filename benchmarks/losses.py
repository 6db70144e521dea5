"""The programs that `training_step` compares: one loss of masked diffusion, in the ways that people write it.

    full     logits and cross-entropy of every position, multiplied by weight and mask afterwards, as dLLM trains
    indexed  logits of every position, cross-entropy of the masked ones divided by p, as LLaDA trains
    patched  the same lines as indexed, on a model that `dllm.fast.patch` has been told of
    ours     `dllm.fast.training.loss.masked_loss`, as MDLMTrainer calls it: logits of the masked positions only

All of them compute sum over masked i of w(t) (-log p(x_i | x_t)) / (B L), w(t) = 1/t, on batches of the trainer's own
collator. Before anything is timed, each is held against float64.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import Loaded
from dllm.core.schedulers import LinearAlphaScheduler
from dllm.core.trainers.collator import CORRUPTION, MDLMCollator

TRUTH_ROWS = 256  # rows whose logits exist in float64 at a time


class Batch(NamedTuple):
    """What a loss is given, masks already drawn: whole sequences [B, L], and the same for the N masked tokens alone."""

    noisy: Tensor  # int64, x_t
    clean: Tensor  # int64, x_0
    masked: Tensor  # bool
    weight: Tensor  # float32, w(t) where masked, else 0
    p: Tensor  # float32, 1 / w(t) where masked, else 1
    rows: Tensor  # int64 [N], b L + i
    targets: Tensor  # int64 [N], x_0
    row_weight: Tensor  # float32 [N], w(t)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(*(tensor.to(device) for tensor in self))


class Program(NamedTuple):
    """A way to compute the loss of a batch, the name of the program that it is to replace, if any, and what the model
    is prepared with once, before its steps."""

    loss: Callable[[nn.Module, Batch], Tensor]
    against: str | None = None
    prepared: Callable[[nn.Module], AbstractContextManager] = nullcontext


def full(model: nn.Module, batch: Batch) -> Tensor:
    """dLLM's way."""
    logits = model(input_ids=batch.noisy).logits
    nll = F.cross_entropy(logits.transpose(1, 2), batch.clean, reduction="none")
    return (nll * batch.weight * batch.masked).sum() / batch.clean.numel()


def indexed(model: nn.Module, batch: Batch) -> Tensor:
    """LLaDA's way."""
    logits, masked = model(input_ids=batch.noisy).logits, batch.masked
    nll = F.cross_entropy(logits[masked], batch.clean[masked], reduction="none")
    return (nll / batch.p[masked]).sum() / batch.clean.numel()


def ours(model: nn.Module, batch: Batch) -> Tensor:
    """Only the masked rows meet the vocabulary, and their logits live inside one operation."""
    from dllm.fast.training.loss import masked_loss

    row_weight = batch.row_weight * (1 / batch.clean.numel())
    inputs = {"input_ids": batch.noisy}
    return masked_loss(model, inputs, rows=batch.rows, targets=batch.targets, row_weight=row_weight).loss


def _patched(model: nn.Module) -> AbstractContextManager:
    from dllm.fast import patch

    return patch(model)


PROGRAMS = {
    "full": Program(full),
    "indexed": Program(indexed),
    "patched": Program(indexed, against="indexed", prepared=_patched),
    "ours": Program(ours, against="full"),
}


def make_batches(loaded: Loaded, batch: int, length: int, count: int, seed: int) -> list[Batch]:
    """`count` batches of random tokens. The times of a batch are spread evenly over (0, 1), so that about half of its
    tokens are masked, as on average in training."""
    collate = MDLMCollator(
        base=lambda samples: {"input_ids": torch.stack(list(samples))},
        scheduler=LinearAlphaScheduler(),
        mask_id=loaded.mask_id,
        pad_id=None,
        vocab_size=loaded.vocab_size,
        seed=seed,
        antithetic=True,
    )
    draw = torch.Generator().manual_seed(seed)
    device = loaded.model.get_output_embeddings().weight.device
    batches = []
    for _ in range(count):
        clean = torch.randint(loaded.vocab_size - 1, (batch, length), generator=draw)
        clean += clean >= loaded.mask_id  # no mask token among them
        batches.append(_laid_out(clean, collate(clean)).to(device))
    return batches


def _laid_out(clean: Tensor, collated: dict) -> Batch:
    """The collator's list of masked tokens, also written into whole sequences as the plain programs want them."""
    rows, targets, row_weight = (collated[CORRUPTION][name] for name in ("rows", "targets", "weight"))
    weight = torch.zeros(clean.numel()).index_copy(0, rows, row_weight).view_as(clean)
    masked = weight > 0
    p = torch.where(masked, 1 / weight, 1.0)
    return Batch(collated["input_ids"], clean, masked, weight, p, rows, targets, row_weight)


class Truth(NamedTuple):
    """The loss that the model's last hidden states give in float64, and how far off a program may be."""

    loss: float
    tolerance: float


@torch.no_grad()
def true_loss(model: nn.Module, batch: Batch) -> Truth:
    """The loss of a batch in float64, from the input of the model's head rounded as the head's product rounds it.

    The tolerance is twice the sum, over tokens, of what plain PyTorch is off by (under autocast where that is on), at
    least two float32 ulp of the loss. Errors of either sign may cancel in a loss; here they do not.
    """
    head, inputs = model.get_output_embeddings(), []
    hook = head.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    try:
        model(input_ids=batch.noisy)
    finally:
        hook.remove()
    hidden = inputs[0].flatten(0, -2)
    chunks = zip(*(part.split(TRUTH_ROWS) for part in (batch.rows, batch.targets, batch.row_weight)), strict=True)
    loss, error = 0.0, 0.0
    for rows, targets, row_weight in chunks:
        plain, true = _nll(head, hidden[rows], targets)
        weight = row_weight.double() / batch.clean.numel()
        loss += float((weight * true).sum())
        error += float((weight * (plain - true).abs()).sum())
    return Truth(loss, 2 * max(error, torch.finfo(torch.float32).eps * abs(loss)))


def _nll(head: nn.Linear, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """-log softmax(head(hidden))[targets], float64: of logits as plain PyTorch computes them, and of exact ones."""
    logits = head(hidden)
    plain = F.cross_entropy(logits, targets, reduction="none").double()
    operands = (hidden, head.weight, head.bias)
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, weight, bias = (None if one is None else one.to(logits.dtype).double() for one in operands)
        return plain, F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")
