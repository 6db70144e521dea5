"""Weighted cross-entropy from hidden states: library matrix products around the kernel of masked_cross_entropy.

The same for every kind of device, since only that kernel differs. Chunks hold whole rows of the vocabulary, so that one
pass over a chunk's logits turns them into their own gradient. They are long, because the float32 gradient of the weight
is read and written again for each but the first; on a CPU in float32, whose products accumulate in place, they are so
short that their logits stay in its cache.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dllm_kernels import _checks
from dllm_kernels._linear import by_library
from dllm_kernels.masked_cross_entropy import autograd

CHUNK_ROWS = 2048
CHUNK_ROWS_IN_CACHE = 256
BLOCK_V = 1024  # tokens whose gradients are widened to float32 at a time, where nothing accumulates in it


class Call(NamedTuple):
    """The arguments of the public function, already checked but for their values; `dtype` is the products'."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    row_weight: Tensor
    rows: Tensor | None
    capacity: int | None
    label_smoothing: float
    z_loss: float
    softcap: float | None
    dtype: torch.dtype
    impl: str


_TENSORS = 6  # the fields of a call that are tensors, or None, come first


class NeededGradients(NamedTuple):
    """Which gradients are to be formed."""

    hidden: bool = False
    weight: bool = False
    bias: bool = False


class Gradients(NamedTuple):
    """Gradients that still lack a factor; None where not wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weight: Tensor,
    rows: Tensor | None,
    capacity: int | None,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    dtype: torch.dtype,
    recompute: bool,
    keep: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """loss, nll by the kernels of `impl`; arguments as in the public function."""
    recompute = recompute or keep  # where one chunk does not hold the logit_gradients, and under torch.compile
    call = Call(
        hidden, weight, bias, targets, row_weight, rows, capacity, label_smoothing, z_loss, softcap, dtype, impl
    )
    wanted = NeededGradients()
    if torch.is_grad_enabled():
        wanted = NeededGradients(hidden.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad)
    if torch.compiler.is_compiling():
        return torch.ops.dllm_kernels.linear_cross_entropy_formed(*call, *wanted, recompute, None)[:2]
    if any(wanted):
        return _LinearCrossEntropy.apply(*call, recompute, keep)
    return _forward(call, wanted)[:2]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        *fields, recompute, keep = arguments
        call = Call(*fields)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*call[:_TENSORS])
        ctx.settings = call[_TENSORS:]
        ctx.formed = ctx.kept = None
        if keep and (kept := _save_logit_gradients(call, NeededGradients(*ctx.needs_input_grad[:3]))) is not None:
            nll, ctx.kept = kept
            return autograd.weighted_sum(call.row_weight, nll), nll
        loss, nll, formed, ctx.factor = _forward(
            call, NeededGradients() if recompute else NeededGradients(*ctx.needs_input_grad[:3])
        )
        ctx.formed = None if recompute else formed
        return loss, nll

    @staticmethod
    @once_differentiable
    def backward(ctx, loss_grad, nll_grad):
        call = Call(*ctx.saved_tensors, *ctx.settings)
        wanted = NeededGradients(*ctx.needs_input_grad[:3])
        # scaled in place and handed out: a second backward forms them again
        (formed, ctx.formed), (kept, ctx.kept) = (ctx.formed, None), (ctx.kept, None)
        if nll_grad is None and formed is not None:
            factor = loss_grad if ctx.factor is None else loss_grad * ctx.factor
        else:
            row_scale = autograd.total_scale(loss_grad, nll_grad, call.row_weight)
            if kept is None:
                _, formed, factor = _forward_chunks(call, row_scale, wanted)
            else:
                formed, factor = _from_logit_gradients(call, kept, row_scale, wanted), None
        return *_finished(call, formed, factor), *[None] * (len(call) - 1)


@torch.library.custom_op("dllm_kernels::linear_cross_entropy_formed", mutates_args=())
def _formed(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weight: Tensor,
    rows: Tensor | None,
    capacity: int | None,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    dtype: torch.dtype,
    impl: str,
    want_hidden: bool,
    want_weight: bool,
    want_bias: bool,
    recompute: bool,
    row_scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """loss, nll, three gradients (empty where there is none) and what the upstream gradient of the loss is to be
    multiplied by; with `row_scale` the gradients of sum row_scale nll."""
    call = Call(
        hidden, weight, bias, targets, row_weight, rows, capacity, label_smoothing, z_loss, softcap, dtype, impl
    )
    wanted = NeededGradients() if recompute else NeededGradients(want_hidden, want_weight, want_bias)
    if row_scale is None:
        loss, nll, formed, factor = _forward(call, wanted)
    else:
        nll, formed, factor = _forward_chunks(call, row_scale, wanted)
        loss = nll.sum()
    factor = torch.ones_like(loss) if factor is None else factor
    gradients = _finished(call, formed, factor if row_scale is not None else None)
    return loss, nll, *(hidden.new_empty(0) if gradient is None else gradient for gradient in gradients), factor


@_formed.register_fake
def _(hidden, weight, bias, targets, row_weight, *rest):
    *_, want_hidden, want_weight, want_bias, recompute, _ = rest
    wanted = NeededGradients() if recompute else NeededGradients(want_hidden, want_weight, want_bias)
    gradients = [
        torch.empty_like(of, memory_format=torch.contiguous_format) if want else hidden.new_empty(0)
        for of, want in zip((hidden, weight, bias), wanted, strict=True)
    ]
    scalar = row_weight.new_empty(())
    return scalar, torch.empty_like(row_weight), *gradients, torch.empty_like(scalar)


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:_TENSORS], *output[2:])
    ctx.settings = inputs[_TENSORS : len(Call._fields)]
    ctx.recompute = inputs[-2]


def _formed_backward(ctx, loss_grad, nll_grad, *_):
    *tensors, d_hidden, d_weight, d_bias, factor = ctx.saved_tensors
    call, wanted = Call(*tensors, *ctx.settings), NeededGradients(*ctx.needs_input_grad[:3])
    if nll_grad is None and not ctx.recompute:
        gradients = [(gradient * (loss_grad * factor)).to(gradient.dtype) for gradient in (d_hidden, d_weight, d_bias)]
    else:
        row_scale = autograd.total_scale(loss_grad, nll_grad, call.row_weight)
        _, _, *gradients, _ = torch.ops.dllm_kernels.linear_cross_entropy_formed(*call, *wanted, False, row_scale)
    gradients = [gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)]
    return *gradients, *[None] * (len(call) + 2)


_formed.register_autograd(_formed_backward, setup_context=_setup_context)


def _forward(call: Call, wanted: NeededGradients) -> tuple[Tensor, Tensor, Gradients, Tensor | None]:
    """loss, nll, the gradients of the loss, and a factor that they lack."""
    n_hidden, vocab_size = len(call.hidden), len(call.weight)
    check_values(call.targets, call.row_weight, call.rows, call.capacity, n_hidden, vocab_size)
    nll, formed, factor = _forward_chunks(call, call.row_weight, wanted)
    return autograd.weighted_sum(call.row_weight, nll), nll, formed, factor


def _forward_chunks(call: Call, row_scale: Tensor, wanted: NeededGradients) -> tuple[Tensor, Gradients, Tensor | None]:
    """nll [R], the gradients of sum row_scale nll but for a factor, and that factor; rows of scale 0 are left out."""
    chosen, row_weight = _choose(call, row_scale)
    row_scale, factor = autograd.formed_scale(row_scale, call.dtype)
    hidden, weight = call.hidden, call.weight.to(call.dtype)
    bias = None if call.bias is None else call.bias.to(call.dtype)
    chunks = chosen.split(_chunk_rows(call, len(chosen), wanted.weight))
    at_once = len(chunks) == 1 and call.dtype != torch.float16  # float16 could overflow where it sums over rows
    nll = 0.0 * row_weight  # NaN stays
    d_hidden = _zeros(hidden, hidden.dtype) if wanted.hidden else None
    d_weight = None
    d_bias = _zeros(bias, torch.float32) if wanted.bias else None
    with torch.autocast(hidden.device.type, enabled=False):
        for part in chunks:
            h, source, targets = _gather(call, part, row_weight)
            logits = by_library(h, weight, bias)
            gradient = logits if any(wanted) else None  # written over them
            nll[part] = autograd.kernels(call.impl).masked_cross_entropy(
                *(logits, targets, row_weight[part], row_scale[part], gradient),
                *(call.label_smoothing, call.z_loss, call.softcap),
            )
            if wanted.hidden:
                _add_rows(d_hidden, source, by_library(gradient, weight.t(), None).to(hidden.dtype))
            if wanted.weight and at_once:
                d_weight = gradient.t() @ h
            elif wanted.weight:
                d_weight = _add_product(d_weight, gradient, h)
            if wanted.bias:
                _add_column_sums(d_bias, gradient)
            del logits, gradient  # before the next chunk's take their place
    return nll, Gradients(d_hidden, d_weight, d_bias), factor


class SavedLogitGradients(NamedTuple):
    """A chunk between forward and backward: its rows [C], their hidden rows [C, H] and which ones they are [C], and
    d nll / d logits [C, V]."""

    rows: Tensor
    h: Tensor
    source: Tensor
    logit_gradients: Tensor


def _save_logit_gradients(call: Call, wanted: NeededGradients) -> tuple[Tensor, SavedLogitGradients] | None:
    """nll [R], and what a backward needs to be three products; None where one chunk does not hold it all."""
    check_values(call.targets, call.row_weight, call.rows, call.capacity, len(call.hidden), len(call.weight))
    chosen, row_weight = _choose(call, call.row_weight)
    if len(chosen) > _chunk_rows(call, len(chosen), wanted.weight):
        return None
    if call.dtype == torch.float16:  # it would lose logit_gradients that a loss scale lifts
        return None
    bias = None if call.bias is None else call.bias.to(call.dtype)
    nll = 0.0 * row_weight  # NaN stays
    with torch.autocast(call.hidden.device.type, enabled=False):
        h, source, targets = _gather(call, chosen, row_weight)
        logit_gradients = by_library(h, call.weight.to(call.dtype), bias)
        weight = row_weight[chosen]
        nll[chosen] = autograd.kernels(call.impl).masked_cross_entropy(
            *(
                logit_gradients,
                targets,
                weight,
                torch.where(weight == 0, 0.0, weight / weight),
                logit_gradients,
            ),  # NaN stays
            *(call.label_smoothing, call.z_loss, call.softcap),
        )
    return nll, SavedLogitGradients(chosen, h, source, logit_gradients)


def _from_logit_gradients(
    call: Call, kept: SavedLogitGradients, row_scale: Tensor, wanted: NeededGradients
) -> Gradients:
    """The gradients of sum row_scale nll; rows of scale 0 are left out where the host sees them."""
    rows, h, source, logit_gradients = kept
    if _on_host(logit_gradients):
        used = (row_scale[rows] != 0).nonzero().flatten()
        if len(used) < len(rows):
            rows, h, source, logit_gradients = (part.index_select(0, used) for part in kept)
    d_hidden = _zeros(call.hidden, call.hidden.dtype) if wanted.hidden else None
    d_weight = d_bias = None
    with torch.autocast(h.device.type, enabled=False):
        autograd.kernels(call.impl).scale_rows(logit_gradients, row_scale[rows])
        if wanted.hidden:
            d_rows = by_library(logit_gradients, call.weight.to(call.dtype).t(), None)
            _add_rows(d_hidden, source, d_rows.to(call.hidden.dtype))
        if wanted.weight:
            d_weight = logit_gradients.t() @ h
        if wanted.bias:
            d_bias = _zeros(call.bias, torch.float32)
            _add_column_sums(d_bias, logit_gradients)
    return Gradients(d_hidden, d_weight, d_bias)


def _choose(call: Call, row_scale: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that meet the head, [C], those with a scale first and else in order; and the weights [R] of the rows, 0
    where the scale is, all NaN where more rows have a scale than there is room for."""
    used = row_scale != 0
    row_weight = torch.where(used, call.row_weight, 0.0)
    room = len(used) if call.capacity is None else min(call.capacity, len(used))
    if _on_host(used):
        room = min(room, used.sum().tolist())
    elif call.capacity is not None:
        row_weight = torch.where(used.sum() > call.capacity, math.nan, row_weight)
    return used.logical_not().to(torch.uint8).argsort(stable=True)[:room], row_weight


def chunk_rows(dtype: torch.dtype, width: int, rows: int, weight_gradient: bool) -> int:
    """Rows whose logits exist at a time, of `rows` in all, where they need not stay in a cache.

    Several chunks in bfloat16 take 2048 V s bytes of logits and 4 V H of the weight's float32 gradient, which one chunk
    does not need. So as many rows as fit into both together are one chunk. More are chunks whose logits take at most
    half of what that gradient does, or 2048 rows. Other dtypes have a float32 gradient in any case.

    Example:
        >>> [chunk_rows(torch.bfloat16, 4096, rows, True) for rows in (4096, 10240, 10241)]
        [4096, 10240, 4096]
    """
    if not weight_gradient or dtype.itemsize == 4:
        return CHUNK_ROWS
    if dtype == torch.bfloat16 and rows <= CHUNK_ROWS + 4 * width // dtype.itemsize:
        return max(rows, 1)
    return max(CHUNK_ROWS, 2 * width // dtype.itemsize)


def _chunk_rows(call: Call, rows: int, weight_gradient: bool) -> int:
    """The same for a call: by its shapes and dtype, never by values."""
    if _on_host(call.hidden) and call.dtype == torch.float32:
        return CHUNK_ROWS_IN_CACHE
    return chunk_rows(call.dtype, call.hidden.shape[1], rows, weight_gradient)


def _on_host(x: Tensor) -> bool:
    """Whether the host can look at values without waiting for a device."""
    return x.device.type == "cpu"


def _zeros(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows one after the other, however `like` lies."""
    return torch.zeros(like.shape, dtype=dtype, device=like.device)


def _gather(call: Call, part: Tensor, row_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden rows [C, H], which ones they are, and labels of a chunk; padding reads nothing that counts: 0 h is 0."""
    source = part if call.rows is None else call.rows[part]
    inside = (source >= 0) & (source < len(call.hidden))
    source = source.clamp(0, len(call.hidden) - 1)
    h = call.hidden.index_select(0, source).to(call.dtype)
    h.masked_fill_((row_weight[part] == 0)[:, None], 0.0)
    return h, source, call.targets[part].masked_fill(~inside, -1)


def _add_rows(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """total[rows] += values, in a fixed order where rows repeat."""
    if total.is_cuda:
        total.index_put_((rows,), values, accumulate=True)  # sorts; index_add_ is a race there
    else:
        total.index_add_(0, rows, values)


def _add_product(total: Tensor | None, gradient: Tensor, h: Tensor) -> Tensor:
    """total + gradient.T @ h in float32, over `total` where there is one; the first product is written, not added."""
    if gradient.dtype == torch.float32:
        return gradient.t() @ h if total is None else total.addmm_(gradient.t(), h)
    if gradient.is_cuda and torch.version.cuda:
        if total is None:
            return torch.mm(gradient.t(), h, out_dtype=torch.float32)
        return torch.addmm(total, gradient.t(), h, out_dtype=torch.float32, out=total)
    first, h = total is None, h.float()
    if first:
        total = torch.empty(gradient.shape[1], h.shape[1], dtype=torch.float32, device=h.device)
    for part, columns in zip(total.split(BLOCK_V), gradient.split(BLOCK_V, dim=1), strict=True):
        torch.addmm(part, columns.float().t(), h, beta=0 if first else 1, out=part)  # 0: not read
    return total


def _add_column_sums(total: Tensor, gradient: Tensor) -> None:
    """total += gradient.sum(0), in float32, of which a CPU makes a copy first: so few columns at a time there."""
    width = len(total) if total.is_cuda or total.dtype == gradient.dtype else BLOCK_V
    for part, columns in zip(total.split(width), gradient.split(width, dim=1), strict=True):
        part += columns.sum(0, dtype=torch.float32)


def _finished(call: Call, formed: Gradients, factor: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of hidden, weight and bias: multiplied by what they lack, then rounded to their dtype."""
    gradients = []
    for gradient, of in zip(formed, (call.hidden, call.weight, call.bias), strict=True):
        if gradient is not None:
            if factor is not None:
                matrix = gradient.view(-1, gradient.shape[-1])
                autograd.kernels(call.impl).scale_rows(matrix, factor.expand(len(matrix)))
            gradient = gradient.to(of.dtype)
        gradients.append(gradient)
    return tuple(gradients)


def check_values(
    targets: Tensor, row_weight: Tensor, rows: Tensor | None, capacity: int | None, n_hidden: int, vocab_size: int
) -> None:
    """Weights, labels, rows and their number, where the host can see them."""
    autograd.check_values(targets, row_weight, vocab_size)
    if rows is not None and rows.device.type == "cpu":
        inside = (rows >= 0) & (rows < n_hidden)
        rule = f"from 0 to {n_hidden - 1} where the weight is not 0"
        _checks.every_row("rows", rows, inside | (row_weight == 0), rule)
    if capacity is not None and row_weight.device.type == "cpu":
        used = (row_weight != 0).sum().tolist()
        if used > capacity:
            raise ValueError(f"at most capacity = {capacity} rows may have a weight, got {used}")
