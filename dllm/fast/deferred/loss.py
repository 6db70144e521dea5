"""Cross-entropy of deferred logits from hidden states and head, for all forms of labels that F.cross_entropy takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.fast.deferred.gradient import DeferredGradient, FormedGradient, differentiable_once
from dllm.fast.deferred.head_inputs import HeadInputs, Parts, scattered
from dllm.fast.deferred.tensor import DeferredLogits, of_autocast
from dllm.fast.deferred.views import serves
from dllm_kernels import linear_cross_entropy


@serves(F.cross_entropy)
def _cross_entropy(
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
):
    if not _is_ours(input, target) or input.plan.transform is not None:
        return NotImplemented
    if size_average is not None or reduce is not None or (weight is not None and label_smoothing):
        return NotImplemented
    return _loss(input, target, weight, ignore_index, reduction, label_smoothing)


@serves(F.nll_loss)
def _nll_loss(input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean"):
    if not _is_ours(input, target) or input.plan.transform != "log_softmax":
        return NotImplemented
    if size_average is not None or reduce is not None:
        return NotImplemented
    return _loss(input, target, weight, ignore_index, reduction, 0.0)


def nll_of_rows(tensor: DeferredLogits, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] of each row, float32 of the rows' shape."""
    plan, targets = tensor.plan, targets.flatten()
    job = _LossSpec(
        plan.head_inputs.check(), plan.rows.flatten(), targets, torch.ones_like(targets, dtype=torch.float32)
    )
    return _Fused.apply(tensor, job).view(plan.rows.shape)


def _is_ours(logits: object, target: object) -> bool:
    """Logits [N, V], [V] or [B, V, ...] with one label for each of their rows."""
    if not isinstance(logits, DeferredLogits) or not isinstance(target, Tensor) or isinstance(target, DeferredLogits):
        return False
    class_axis = 0 if logits.dim() == 1 else 1
    at_its_place = logits.plan.axis == class_axis and logits.plan.rows.shape == target.shape
    return at_its_place and target.dtype == torch.int64 and target.device == logits.device


def _loss(
    logits: DeferredLogits,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> object:
    if reduction not in ("none", "mean", "sum") or not 0 <= label_smoothing <= 1:
        return NotImplemented
    head_inputs, rows, targets = logits.plan.head_inputs.check(), logits.plan.rows.flatten(), target.flatten()
    counted = targets != ignore_index
    dtype, per_row = of_autocast(logits), weight is not None or reduction == "none"
    total = counted.sum() if reduction == "mean" and not per_row else None
    row_weight = counted.float() if total is None else counted / total.clamp(min=1)
    fused = _Fused.apply(logits, _LossSpec(head_inputs, rows, targets, row_weight, label_smoothing, per_row))
    if not per_row:
        return (fused if total is None else torch.where(total > 0, fused, torch.nan)).to(dtype)
    nll = fused
    if weight is not None:
        weight = weight.index_select(0, targets.where(counted, 0)).where(counted, 0)
        nll = nll * weight
    if reduction == "none":
        return nll.view(target.shape).to(dtype)
    return (nll.sum() if reduction == "sum" else nll.sum() / weight.sum()).to(dtype)


@dataclass(slots=True)
class _LossSpec:
    """Rows, labels and weights of a loss."""

    head_inputs: HeadInputs
    rows: Tensor
    targets: Tensor
    row_weight: Tensor
    label_smoothing: float = 0.0
    per_row: bool = True  # nll [R] rather than the weighted sum of them

    def run(self, parts: Parts) -> Tensor:
        """nll [R] or their weighted sum, float32, differentiable where the parts are."""
        # a gradient per row arrives later only: what is asked for is formed then, from slopes kept until then
        with self.head_inputs.under_autocast():
            loss, nll = linear_cross_entropy(
                parts.hidden,
                parts.weight,
                self.targets,
                self.row_weight,
                bias=parts.bias,
                rows=self.rows,
                capacity=None if self.rows.device.type == "cpu" else int(self.row_weight.count_nonzero()),
                label_smoothing=self.label_smoothing,
                keep=self.per_row,
            )
        return nll if self.per_row else loss

    def d_logits(self, upstream: Tensor) -> Tensor:
        """The gradient of all logits [N, V]: for each row, with y the label and u the upstream gradient of its nll,

        u (softmax(l) - (1 - smoothing) onehot(y) - smoothing / V)
        """
        row_upstream = torch.where(self.row_weight != 0, upstream * (1 if self.per_row else self.row_weight), 0.0)
        gradient = self.head_inputs.check().logits(self.rows).float().softmax(-1)
        gradient -= self.label_smoothing / gradient.shape[-1]
        targets = self.targets.where(self.row_weight != 0, 0)[:, None]
        gradient.scatter_add_(1, targets, torch.full_like(row_upstream, self.label_smoothing - 1)[:, None])
        return scattered(gradient.mul_(row_upstream[:, None]), self.rows, len(self.head_inputs.hidden))


class _Fused(torch.autograd.Function):
    """The loss of a job as a function of deferred logits."""

    @staticmethod
    def forward(ctx, logits, job):
        ctx.set_materialize_grads(False)
        ctx.job, ctx.plan = job, logits.plan
        ctx.parts = job.head_inputs.leaves() if ctx.needs_input_grad[0] else None
        if ctx.parts is None:
            return job.run(Parts(job.head_inputs.hidden, job.head_inputs.weight, job.head_inputs.bias))
        # a graph of its own inside this node: a checkpoint around the loss has no part in what it saves
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_same, _same):
            ctx.loss = job.run(ctx.parts)
        return ctx.loss.detach()

    @staticmethod
    @differentiable_once
    def backward(ctx, upstream):
        if upstream is None:
            return None, None
        wanted = [part for part, want in zip(ctx.parts, ctx.job.head_inputs.wanted, strict=True) if want]
        found = iter(torch.autograd.grad(ctx.loss, wanted, upstream, retain_graph=True) if wanted else ())
        parts = Parts(*(next(found) if want else None for want in ctx.job.head_inputs.wanted))
        job = ctx.job
        return FormedGradient(ctx.plan, DeferredGradient(parts, (lambda: job.d_logits(upstream),))), None


def _same(tensor: Tensor) -> Tensor:
    return tensor
