"""The differentiable operation over the kernels: eager an autograd function, under torch.compile a custom operator.

The forward forms the gradient of the loss in each row, times a scale that is known then; the backward multiplies the
rows by what the upstream gradients make of it. An eager call goes around torch's dispatcher.
"""

from __future__ import annotations

import importlib
import math
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dllm_kernels import _checks


def masked_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    inplace: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """loss, nll by the kernels of `impl`; arguments as in the public function, already checked but for their values."""
    differentiable = torch.is_grad_enabled() and logits.requires_grad
    arguments = (logits, targets, row_weight, label_smoothing, z_loss, softcap)
    if torch.compiler.is_compiling():  # the compiler plans memory itself: inplace is a permission, not a duty
        return torch.ops.dllm_kernels.masked_cross_entropy_formed(*arguments, differentiable, impl)[:2]
    if differentiable:
        return _MaskedCrossEntropy.apply(*arguments, inplace, impl)
    return _forward(*arguments, None, impl)


class _MaskedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, row_weight, label_smoothing, z_loss, softcap, inplace, impl):
        ctx.set_materialize_grads(False)
        ctx.gradient = logits.detach() if inplace else _empty(logits)
        ctx.impl = impl
        ctx.save_for_backward(row_weight)
        loss, nll = _forward(logits, targets, row_weight, label_smoothing, z_loss, softcap, ctx.gradient, impl)
        if inplace:  # whoever saved the logits for a backward of its own is told
            torch.autograd.graph.increment_version(logits)
        return loss, nll

    @staticmethod
    @once_differentiable
    def backward(ctx, loss_grad, nll_grad):
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("the gradient was formed once and has been handed out: call masked_cross_entropy again")
        scale = _upstream(loss_grad, nll_grad, *ctx.saved_tensors, gradient.dtype)
        kernels(ctx.impl).scale_rows(gradient, scale)
        return gradient, *[None] * 7


@torch.library.custom_op("dllm_kernels::masked_cross_entropy_formed", mutates_args=())
def _formed(
    logits: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    differentiable: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    gradient = _empty(logits if differentiable else logits[:0])
    target = gradient if differentiable else None
    return *_forward(logits, targets, row_weight, label_smoothing, z_loss, softcap, target, impl), gradient


@_formed.register_fake
def _(logits, targets, row_weight, label_smoothing, z_loss, softcap, differentiable, impl):
    return row_weight.new_empty(()), torch.empty_like(row_weight), _empty(logits if differentiable else logits[:0])


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[2], output[2])


def _formed_backward(ctx, loss_grad, nll_grad, _):
    row_weight, gradient = ctx.saved_tensors
    scale = _upstream(loss_grad, nll_grad, row_weight, gradient.dtype)
    return (gradient * scale[:, None]).to(gradient.dtype), *[None] * 7


_formed.register_autograd(_formed_backward, setup_context=_setup_context)


def _empty(logits: Tensor) -> Tensor:
    """Room for a gradient: rows one after the other, however the logits lie."""
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _forward(
    logits: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    gradient: Tensor | None,
    impl: str,
) -> tuple[Tensor, Tensor]:
    check_values(targets, row_weight, logits.shape[1])
    row_scale = formed_scale(row_weight, logits.dtype)[0]
    nll = kernels(impl).masked_cross_entropy(
        logits, targets, row_weight, row_scale, gradient, label_smoothing, z_loss, softcap
    )
    return weighted_sum(row_weight, nll), nll


def formed_scale(row_scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """What a gradient is multiplied by where it is formed in `dtype`, and what is left to multiply later, if anything.

    float16 reaches from 6e-8 to 65504 only: weights divided by a number of tokens would vanish in it before a loss
    scale, which comes with the upstream gradient, could lift them. So there the largest weight counts as 256, which
    leaves room on both sides, and the rest is for later.
    """
    if dtype != torch.float16 or len(row_scale) == 0:
        return row_scale, None
    unit = row_scale.abs().amax() / 256
    return row_scale / torch.where(unit > 0, unit, 1.0), unit


def weighted_sum(row_weight: Tensor, nll: Tensor) -> Tensor:
    """sum w nll, rounded once."""
    return (row_weight.double() * nll.double()).sum().float()


def check_values(targets: Tensor, row_weight: Tensor, vocab_size: int) -> None:
    """Weights and labels, where the host can see them; elsewhere nothing is read, so nothing is launched either."""
    if row_weight.device.type != "cpu":
        return
    _checks.every_row("row_weight", row_weight, (row_weight >= 0) & (row_weight < math.inf), "finite and at least 0")
    inside = (targets >= 0) & (targets < vocab_size)
    rule = f"from 0 to {vocab_size - 1} where the weight is not 0"
    _checks.every_row("targets", targets, inside | (row_weight == 0), rule)


def kernels(impl: str) -> ModuleType:
    """The module that holds the kernels of an implementation."""
    return importlib.import_module(f"dllm_kernels.masked_cross_entropy.{impl}")


def _upstream(loss_grad: Tensor | None, nll_grad: Tensor | None, row_weight: Tensor, dtype: torch.dtype) -> Tensor:
    """What the formed gradient of each row still has to be multiplied by; exactly 1 where both know nothing better."""
    wanted = total_scale(loss_grad, nll_grad, row_weight)
    return torch.where(row_weight == 0, 1.0, wanted / formed_scale(row_weight, dtype)[0])


def total_scale(loss_grad: Tensor | None, nll_grad: Tensor | None, row_weight: Tensor) -> Tensor:
    """d(everything) / d(nll of a row) [R]; 0 where the weight is 0, for there the nll is no function of the logits."""
    wanted = torch.zeros_like(row_weight) if loss_grad is None else row_weight * loss_grad
    return wanted if nll_grad is None else torch.where(row_weight == 0, 0.0, wanted + nll_grad)
