"""Weighted cross-entropy from hidden states and LM head, the logits never stored for more than a chunk of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels import _checks, _impl
from dllm_kernels.linear_cross_entropy import chunked, reference
from dllm_kernels.masked_cross_entropy.api import CrossEntropy, check_options, check_rows, check_vocabulary


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    *,
    bias: Tensor | None = None,
    rows: Tensor | None = None,
    capacity: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    recompute: bool = False,
    keep: bool = False,
    impl: str = "auto",
) -> CrossEntropy:
    r""":func:`masked_cross_entropy` of hidden @ weight.T + bias, for the rows with a weight only.

    .. math::
        x_r = W\, h_{rows_r} + b, \qquad loss = \sum_r w_r\, nll(x_r, target_r)

    Each of R rows has a label, a weight and, in `rows`, the hidden row that predicts the label. Where hidden row p
    predicts token p no `rows` are needed; a model with a right shift, whose row p - 1 does, passes `positions - 1`.
    Several rows may read one hidden row, and rows may come in any order.

    Only rows with a nonzero weight meet the head. On the CPU they are counted. A device would have to be waited for, so
    there `capacity` rows do, or all R without one: what exceeds the number of weights is padding, multiplied but not
    counted. So pass either the masked rows alone (the host that drew the masks knows them), or all rows and their
    number, rounded up to a bucket if you like: no shape depends on values then, and a CUDA graph can capture the call.

    Matrix products: three (logits, d hidden, d weight), formed in the forward, where the gradient of `loss` alone is
    taken; another three, over the rows that have a gradient, where `nll` has one too, or at a second backward. Where
    `nll` is what one differentiates, the forward had better form nothing: with `recompute` the backward forms all from
    logits computed again, four products for either output; with `keep` from d nll / d logits, which is kept
    since the forward where one chunk holds them, three. A gradient that no one asked for is not formed. The weight's is
    accumulated in float32 and rounded once. The same arguments give the same bits.

    Memory beyond the arguments and the gradients, in bytes, with s the size of the matrix products' dtype, C the rows
    of a chunk and R, N, H, V as below:

        C V s + 3 C H s + 64 R,   and 4 V H for the weight's gradient in float32, if s < 4, with several chunks and in
                                  float16; there 4 C (H + 2048) besides where no product accumulates in float32 (CPU);
        4 C 1024                  for a bias on a CPU, if s < 4.

    A chunk has at most 2048 rows; on a CPU in float32 256. Where bfloat16 forms the weight's gradient, all rows are one
    chunk as long as this takes no more memory than chunks of 2048 rows and the float32 gradient, up to 2048 + 2 H rows;
    beyond, and in float16, a chunk has at most max(2048, H) rows.

    Under autocast s (N H + V H + V) besides for operands of another dtype, as much again for gradients in it.

    Under autocast the operands are cast as :func:`torch.nn.functional.linear` casts them, and every gradient returns in
    the dtype of what it belongs to.

    Args:
        hidden: [N, H], float32, bfloat16 or float16.
        weight: [V, H], the LM head, of the same dtype unless autocast is on; tied to an embedding or not.
        targets: int64 [R], from 0 to V - 1 where the weight is not 0 and any number elsewhere; R = N without `rows`.
        row_weight: float32 [R], finite and at least 0, without gradient: w(t), the mask and every normaliser in one.
        bias: [V], of the weight's dtype.
        rows: int64 [R], from 0 to N - 1 where the weight is not 0 and any number elsewhere; None: row r reads hidden r.
        capacity: how many rows may have a weight, at most.
        label_smoothing, z_loss, softcap: as in :func:`masked_cross_entropy`.
        recompute: form gradients in the backward, from logits computed again.
        keep: form them in the backward, from gradients of logits that take C V s bytes; with several chunks, in
            float16 and under torch.compile the same as `recompute`.
        impl: "auto", "reference", "triton" or "cpu"; an explicit one never falls back.

    Returns:
        :class:`CrossEntropy`: loss float32 scalar, nll float32 [R].

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has run. Values are looked at on the CPU only:
            on other devices a label, weight or row that breaks its rule makes its nll NaN, and the loss and gradients
            with it; more weights than `capacity` make all of them NaN.
        RuntimeError: the implementation asked for is not available.

    Source: as :func:`masked_cross_entropy`; chunks as in Liger Kernel (arXiv:2410.10989), gradients in the forward too.

    Example:
        >>> hidden, head = torch.eye(3, 2), torch.zeros(4, 2, requires_grad=True)
        >>> loss, nll = linear_cross_entropy(hidden, head, torch.tensor([1, 0, 3]), torch.tensor([2.0, 0.0, 1.0]))
        >>> loss.detach(), nll.detach()
        (tensor(4.1589), tensor([1.3863, 0.0000, 1.3863]))
        >>> loss.backward()
        >>> head.grad[1]
        tensor([-1.5000,  0.0000])
    """
    dtypes = _checks.LOGIT_DTYPES
    _checks.tensor("hidden", hidden, dtypes=dtypes, shape=("N", "H"))
    device, (n_hidden, width) = hidden.device, hidden.shape
    cast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if cast else hidden.dtype
    _checks.tensor("weight", weight, dtypes=dtypes if cast else (dtype,), shape=("V", width), device=device)
    check_vocabulary("weight", weight.shape[0])
    if width == 0:
        raise ValueError("hidden must have at least one column, got shape [N, 0]")
    if bias is not None:
        _checks.tensor("bias", bias, dtypes=dtypes if cast else (dtype,), shape=(weight.shape[0],), device=device)
    check_rows(targets, row_weight, device)
    n_rows = targets.shape[0]
    if rows is not None:
        _checks.tensor("rows", rows, dtypes=(torch.int64,), shape=(n_rows,), device=device)
        if n_hidden == 0 < n_rows:
            raise ValueError(f"rows must name rows of hidden, which has none; got {n_rows}")
    elif n_rows != n_hidden:
        raise ValueError(f"without rows, targets must have one entry for each of {n_hidden} hidden rows, got {n_rows}")
    if capacity is not None and _checks.int64("capacity", capacity) < 0:
        raise ValueError(f"capacity must be at least 0, got {capacity}")
    options = check_options(label_smoothing, z_loss, softcap)
    impl = _impl.choose(impl, device)
    if impl == "reference":
        chunked.check_values(targets, row_weight, rows, capacity, n_hidden, weight.shape[0])
        return CrossEntropy(
            *reference.linear_cross_entropy(hidden, weight, bias, targets, row_weight, rows, capacity, *options)
        )
    return CrossEntropy(
        *chunked.linear_cross_entropy(
            hidden, weight, bias, targets, row_weight, rows, capacity, *options, dtype, recompute, keep, impl
        )
    )
