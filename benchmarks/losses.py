"""The programs that `training_step` compares: the masked-diffusion loss as different codebases write it.

    full     logits and cross-entropy of every position, then multiplied by weight and mask, as in dLLM
    indexed  logits of every position, cross-entropy of the masked ones divided by p, as in LLaDA
    patched  the same lines as indexed, on a model under `dllm.fast.patch`
    ours     `dllm.fast.training.loss.masked_loss`, as MDLMTrainer calls it: logits of the masked positions only
    compiled the same, with the model's body through torch.compile, as with `compile_body=True`

All compute the sum over masked i of w(t) (-log p(x_i | x_t)) / (B L), w(t) = 1/t, on batches of the trainer's collator.
On a CPU the last two have the dropout of dllm, whose masks are others than torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import Loaded
from dllm.core.schedulers import LinearAlphaScheduler
from dllm.core.trainers.collator import CORRUPTION, MDLMCollator

TRUTH_ROWS = 256  # rows of float64 logits computed at a time


class Batch(NamedTuple):
    """Inputs of a loss, masks already drawn: whole sequences [B, L], and the N masked tokens as a list."""

    noisy: Tensor  # int64, x_t
    clean: Tensor  # int64, x_0
    masked: Tensor  # bool
    weight: Tensor  # float32, w(t) where masked, else 0
    p: Tensor  # float32, 1 / w(t) where masked, else 1
    rows: Tensor  # int64 [N], b L + i
    targets: Tensor  # int64 [N], x_0
    row_weight: Tensor  # float32 [N], w(t)

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(*(tensor.to(device) for tensor in self))


class Program(NamedTuple):
    """A way to compute the loss of a batch.

    against: the program that it replaces; None for a baseline. prepared: a context for the model during its steps.
    body: the context in which a plain forward has the program's hidden states, dropout included.
    """

    loss: Callable[[nn.Module, Batch], Tensor]
    against: str | None = None
    prepared: Callable[[nn.Module], AbstractContextManager] = nullcontext
    body: Callable[[nn.Module], AbstractContextManager] = nullcontext


def full(model: nn.Module, batch: Batch) -> Tensor:
    """The loss as dLLM writes it."""
    logits = model(input_ids=batch.noisy).logits
    nll = F.cross_entropy(logits.transpose(1, 2), batch.clean, reduction="none")
    return (nll * batch.weight * batch.masked).sum() / batch.clean.numel()


def indexed(model: nn.Module, batch: Batch) -> Tensor:
    """The loss as LLaDA writes it."""
    logits, masked = model(input_ids=batch.noisy).logits, batch.masked
    nll = F.cross_entropy(logits[masked], batch.clean[masked], reduction="none")
    return (nll / batch.p[masked]).sum() / batch.clean.numel()


def ours(model: nn.Module, batch: Batch) -> Tensor:
    """The loss of dllm: logits of the masked rows only, inside one operation."""
    from dllm.fast.training.loss import masked_loss

    row_weight = batch.row_weight * (1 / batch.clean.numel())
    inputs = {"input_ids": batch.noisy}
    return masked_loss(model, inputs, rows=batch.rows, targets=batch.targets, row_weight=row_weight).loss


def _patched(model: nn.Module) -> AbstractContextManager:
    from dllm.fast import patch

    return patch(model)


def _compiled(model: nn.Module) -> AbstractContextManager:
    from dllm.fast.compiled.body import CompiledBody

    return CompiledBody(model, training=True, required=True).in_place()


def _with_our_dropout(model: nn.Module) -> AbstractContextManager:
    from dllm.fast.training.dropout import fast_dropout

    return fast_dropout(model.device)


@contextmanager
def _compiled_with_our_dropout(model: nn.Module) -> Iterator[None]:
    with _compiled(model), _with_our_dropout(model):
        yield


PROGRAMS = {
    "full": Program(full),
    "indexed": Program(indexed),
    "patched": Program(indexed, against="indexed", prepared=_patched),
    "ours": Program(ours, against="full", body=_with_our_dropout),
    "compiled": Program(ours, against="full", prepared=_compiled, body=_compiled_with_our_dropout),
}


def make_batches(loaded: Loaded, batch: int, length: int, count: int, seed: int) -> list[Batch]:
    """`count` batches of random tokens.

    The times t of a batch are spread evenly over (0, 1), so about half of its tokens are masked, the mean of training.
    """
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
        clean += clean >= loaded.mask_id  # no clean token is the mask token
        batches.append(_laid_out(clean, collate(clean)).to(device))
    return batches


def _laid_out(clean: Tensor, collated: dict) -> Batch:
    """The collator's batch, with its list of masked tokens also written out as whole sequences."""
    rows, targets, row_weight = (collated[CORRUPTION][name] for name in ("rows", "targets", "weight"))
    weight = torch.zeros(clean.numel()).index_copy(0, rows, row_weight).view_as(clean)
    masked = weight > 0
    p = torch.where(masked, 1 / weight, 1.0)
    return Batch(collated["input_ids"], clean, masked, weight, p, rows, targets, row_weight)


class Truth(NamedTuple):
    """The loss in float64 from the model's last hidden states, and the error allowed to a program."""

    loss: float
    tolerance: float


def true_loss(model: nn.Module, batch: Batch, program: Program) -> Truth:
    """The loss of a batch in float64 in a program's body, from the input of the LM head, rounded to the dtype of the
    head's product.

    The tolerance is twice the sum over tokens of the absolute error of plain PyTorch (under autocast where that is on),
    and at least two float32 ulp of the loss. It is a sum of absolute errors because signed errors could cancel.
    """
    head, inputs = model.get_output_embeddings(), []
    hook = head.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    try:
        with program.body(model):
            model(input_ids=batch.noisy)
    finally:
        hook.remove()
    with torch.no_grad():
        return _true_loss_of(head, inputs[0].detach().flatten(0, -2), batch)


def _true_loss_of(head: nn.Linear, hidden: Tensor, batch: Batch) -> Truth:
    chunks = zip(*(part.split(TRUTH_ROWS) for part in (batch.rows, batch.targets, batch.row_weight)), strict=True)
    loss, error = 0.0, 0.0
    for rows, targets, row_weight in chunks:
        plain, true = _nll(head, hidden[rows], targets)
        weight = row_weight.double() / batch.clean.numel()
        loss += float((weight * true).sum())
        error += float((weight * (plain - true).abs()).sum())
    return Truth(loss, 2 * max(error, torch.finfo(torch.float32).eps * abs(loss)))


def _nll(head: nn.Linear, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """-log softmax(head(hidden))[targets] as float64: from the logits of plain PyTorch, and from float64 logits."""
    logits = head(hidden)
    plain = F.cross_entropy(logits, targets, reduction="none").double()
    operands = (hidden, head.weight, head.bias)
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, weight, bias = (None if one is None else one.to(logits.dtype).double() for one in operands)
        return plain, F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")
