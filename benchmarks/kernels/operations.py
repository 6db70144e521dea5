"""Inputs and programs of a case: dllm's operation, plain PyTorch, and installed libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import dllm_kernels
from benchmarks import card_loop, peers
from benchmarks.kernels.cases import LOSSES, Case
from benchmarks.peers import plain

MASK = 103
TOP_P, TOP_K = 0.95, 50
Program = Callable[[object], object]  # takes the result of make_inputs


class Head(NamedTuple):
    """Inputs of the head: hidden [R, H], weight [V, H]; its logits have a standard deviation of about 3."""

    hidden: Tensor
    weight: Tensor


class Step(NamedTuple):
    """Inputs of a transfer. A call works on a copy of the canvas, `fresh`, so the canvas stays masked."""

    canvas: Tensor
    proposals: Tensor
    confidence: Tensor
    counts: Tensor

    def fresh(self) -> Tensor:
        """A copy of the canvas."""
        return self.canvas.clone()


class Loss(NamedTuple):
    """Inputs of head and loss: hidden [R, H] of the masked rows, weight [V, H], targets [R] and row_weight [R].

    everywhere: [2R, H], the masked rows and as many others without a loss, as in training.
    """

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    row_weight: Tensor
    everywhere: Tensor


class LossOfLogits(NamedTuple):
    """Inputs of a loss: logits [R, V], targets [R] and row_weight [R]."""

    logits: Tensor
    targets: Tensor
    row_weight: Tensor


def make_inputs(case: Case, device: torch.device) -> object:
    """The inputs of the programs of a case."""
    rows, vocab, dtype = case.rows, case.vocab, case.torch_dtype
    if case.op == "position_noise":
        return torch.arange(rows, device=device)
    if case.op == "transfer_tokens":
        return Step(
            torch.full((rows, case.window), MASK, device=device),
            torch.randint(200, 1000, (rows, case.window), device=device),
            torch.rand(rows, case.window, device=device),
            torch.full((rows,), 2, device=device),
        )
    if case.op in LOSSES:
        targets, row_weight = torch.randint(vocab, (rows,), device=device), torch.rand(rows, device=device) / rows
    if case.hidden is None:
        logits = (3 * torch.randn(rows, vocab, device=device)).to(dtype)
        return LossOfLogits(logits.requires_grad_(), targets, row_weight) if case.op in LOSSES else logits
    weight = (torch.randn(vocab, case.hidden, device=device) * 3 / case.hidden**0.5).to(dtype)
    hidden = torch.randn(2 * rows, case.hidden, device=device).to(dtype)
    if case.op == "linear_gumbel_argmax":
        return Head(hidden[:rows].contiguous(), weight)
    masked = hidden[:rows].clone().requires_grad_()
    return Loss(masked, weight.requires_grad_(), targets, row_weight, hidden.requires_grad_())


def programs(case: Case, *, impl: str = "auto", backend: str | None = None) -> dict[str, Program]:
    """The programs of a case by name, ours first.

    Args:
        impl: implementation of dllm's operation.
        backend: of torch.compile; None leaves out compiled programs.
    """
    return _PROGRAMS[case.op](case, impl, backend)


def _gumbel_argmax(case: Case, impl: str, backend: str | None) -> dict[str, Program]:
    noise = _noise(case)
    found = {
        "ours": lambda logits: dllm_kernels.gumbel_argmax(logits, **noise(logits), impl=impl),
        "eager": lambda logits: plain.choose(logits, case.temperature),
    }
    if backend:
        compiled = plain.compiled(plain.choose, backend)
        found["compiled"] = lambda logits: compiled(logits, case.temperature)
    return found | (peers.programs(case.op) if case.temperature == 1 else {})


def _linear_gumbel_argmax(case: Case, impl: str, backend: str | None) -> dict[str, Program]:
    noise = _noise(case)
    found = {
        "ours": lambda head: dllm_kernels.linear_gumbel_argmax(*head, **noise(head.hidden), impl=impl),
        "stored": lambda head: dllm_kernels.gumbel_argmax(F.linear(*head), **noise(head.hidden), impl=impl),
        "eager": lambda head: plain.head_and_choose(*head, case.temperature),
    }
    if backend:
        compiled = plain.compiled(plain.head_and_choose, backend)
        found["compiled"] = lambda head: compiled(*head, case.temperature)
    return found


def _noise(case: Case) -> Callable[[Tensor], dict[str, object]]:
    """A function that returns the noise arguments of a call, made once so that no call is timed with it."""
    made: dict[str, object] = {}

    def noise(rows: Tensor) -> dict[str, object]:
        if not made:
            positions = torch.arange(len(rows), device=rows.device)
            made.update(temperature=case.temperature, seeds=torch.zeros_like(positions), positions=positions)
        return made

    return noise


def _truncation_floor(case: Case, impl: str, backend: str | None) -> dict[str, Program]:
    found = {
        "ours": lambda logits: dllm_kernels.truncation_floor(logits, top_k=TOP_K, top_p=TOP_P, impl=impl),
        "eager": lambda logits: plain.keep(logits, TOP_K, TOP_P),
    }
    if backend:
        compiled = plain.compiled(plain.keep, backend)
        found["compiled"] = lambda logits: compiled(logits, TOP_K, TOP_P)
    others = {name: lambda logits, keep=keep: keep(logits, TOP_K) for name, keep in peers.programs(case.op).items()}
    return found | others


def _transfer_tokens(case: Case, impl: str, backend: str | None) -> dict[str, Program]:
    def ours(step: Step) -> object:
        arguments = (step.fresh(), step.proposals, step.confidence)
        return dllm_kernels.transfer_tokens(*arguments, mask_id=MASK, k=step.counts, impl=impl)

    def loop(step: Step) -> object:
        return card_loop.transfer(step.fresh(), step.proposals, step.confidence, step.counts)

    return {"ours": ours, "eager": loop}


def _position_noise(case: Case, impl: str, backend: str | None) -> dict[str, Program]:
    return {
        "ours": lambda positions: dllm_kernels.position_noise(positions, positions, 0, impl=impl),
        "eager": lambda positions: torch.rand(len(positions), device=positions.device),
    }


def _masked_cross_entropy(case: Case, impl: str, backend: str | None) -> dict[str, Program]:
    def ours(logits: Tensor, targets: Tensor, row_weight: Tensor) -> Tensor:
        return dllm_kernels.masked_cross_entropy(logits, targets, row_weight, impl=impl).loss

    losses = {"ours": ours, "eager": plain.weighted_loss_of_logits}
    if backend:
        losses["compiled"] = plain.compiled(plain.weighted_loss_of_logits, backend)
    return {name: _forward_and_backward(loss) for name, loss in losses.items()}


def _linear_cross_entropy(case: Case, impl: str, backend: str | None) -> dict[str, Program]:
    def ours(hidden: Tensor, weight: Tensor, targets: Tensor, row_weight: Tensor) -> Tensor:
        return dllm_kernels.linear_cross_entropy(hidden, weight, targets, row_weight, impl=impl).loss

    def stored(hidden: Tensor, weight: Tensor, targets: Tensor, row_weight: Tensor) -> Tensor:
        logits = F.linear(hidden, weight)
        return dllm_kernels.masked_cross_entropy(logits, targets, row_weight, inplace=True, impl=impl).loss

    losses = {"ours": ours, "stored": stored, "eager": plain.weighted_loss}
    if backend:
        losses["compiled"] = plain.compiled(plain.weighted_loss, backend)
    if plain.has_chunked_loss():
        losses["torch"] = plain.chunked_mean_loss
    found = {name: _forward_and_backward(loss) for name, loss in (losses | peers.programs(case.op)).items()}
    return found | {"full logits": _on_full_logits}


def free_gradients(inputs: object) -> None:
    """Free the gradients of an earlier step, so that they do not count as memory of the next."""
    if isinstance(inputs, Loss | LossOfLogits):
        for tensor in inputs:
            tensor.grad = None


def _forward_and_backward(loss: Callable[..., Tensor]) -> Program:
    def step(inputs: Loss | LossOfLogits) -> None:
        free_gradients(inputs)
        loss(*inputs[:-1] if isinstance(inputs, Loss) else inputs).backward()

    return step


def _on_full_logits(inputs: Loss) -> None:
    """As in dLLM: logits and loss of every position, with weight 0 where it is not masked."""
    free_gradients(inputs)
    targets, row_weight = (F.pad(x, (0, len(x))) for x in (inputs.targets, inputs.row_weight))
    plain.weighted_loss(inputs.everywhere, inputs.weight, targets, row_weight).backward()


_PROGRAMS: dict[str, Callable[[Case, str, str | None], dict[str, Program]]] = {
    "gumbel_argmax": _gumbel_argmax,
    "linear_gumbel_argmax": _linear_gumbel_argmax,
    "truncation_floor": _truncation_floor,
    "transfer_tokens": _transfer_tokens,
    "position_noise": _position_noise,
    "masked_cross_entropy": _masked_cross_entropy,
    "linear_cross_entropy": _linear_cross_entropy,
}
OPERATIONS = tuple(_PROGRAMS)
