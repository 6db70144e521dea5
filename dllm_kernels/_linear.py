"""The product with a language-model head, in which a row's bits depend on nothing but the row and the head."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels import _checks, _impl

ROWS = 64  # that a library multiplies at a time

# what is known to work; where another torch has another one, its eager product serves
_SCHEMA = "_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear, without gradients: hidden [N, H], weight [V, H], bias [V] or None -> [N, V].

    On a CPU a row has the same bits whatever the number of rows, its place and the number of threads. Libraries do not
    promise that: for another number of rows they take another kernel, or split the sum, and the last bits change. So
    the product is csrc/linear.h's; where that cannot run, a library gets blocks of rows of one size.

    Example:
        >>> linear(torch.ones(1, 2), torch.ones(3, 2), None)
        tensor([[2., 2., 2.]])
    """
    if hidden.device.type != "cpu":
        return F.linear(hidden, weight, bias)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        hidden, weight, bias = (None if x is None else x.to(dtype) for x in (hidden, weight, bias))
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        if _is_ours(hidden, weight, bias):
            return _by_stripes(hidden, weight, bias)
        return by_blocks(lambda rows: F.linear(rows, weight, bias), hidden)


def by_library(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear, without gradients, by the faster of the libraries that torch brings: for training, where rows are many
    and their bits may depend on the batch.

    In float32 on an x86 CPU it is oneDNN's product, the one torch.compile takes, where eager torch takes MKL's: for a
    head's few rows and long vocabulary that is twice as fast on AMD (benchmarks/LOG.md). `weight` may be a transposed
    matrix, as in the gradient of a product's rows, gradient @ weight = by_library(gradient, weight.t(), None).

    Example:
        >>> by_library(torch.ones(1, 2), torch.ones(3, 2), None)
        tensor([[2., 2., 2.]])
    """
    if by_onednn(hidden, weight):
        return torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
    return F.linear(hidden, weight, bias)


def by_blocks(product: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """product(hidden), [N, V] of hidden [N, H], by blocks of 64 rows that zeros fill up: at one size of its operands a
    library takes one kernel and one order of sums, in which rows do not meet.

    Example:
        >>> by_blocks(lambda rows: rows + len(rows), torch.zeros(65, 1)).unique()
        tensor([64.])
    """
    parts = []
    for rows in hidden.split(ROWS):
        missing = ROWS - len(rows)
        full = rows if missing == 0 else torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
        parts.append(product(full)[: len(rows)])
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _is_ours(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    dtypes = {x.dtype for x in (hidden, weight, bias) if x is not None}
    plain = type(hidden) is Tensor and type(weight) in (Tensor, torch.nn.Parameter)
    known = len(dtypes) == 1 and dtypes <= set(_checks.LOGIT_DTYPES) and hidden.shape[1] > 0
    return plain and known and _impl.why_not_cpu() is None


def _by_stripes(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By the operator `linear` of the extension, which reads adjacent columns."""
    hidden, weight = (x if x.stride(1) == 1 else x.contiguous() for x in (hidden, weight))
    out = hidden.new_empty(len(hidden), len(weight))
    if out.numel() > 0:
        bias = None if bias is None else bias.contiguous()
        torch.ops.dllm_kernels.linear(hidden, weight, bias, out)
    return out


def by_onednn(hidden: Tensor, weight: Tensor) -> bool:
    """Whether :func:`by_library` takes oneDNN's product."""
    return (
        hidden.device.type == "cpu"
        and hidden.dtype == weight.dtype == torch.float32
        and len(hidden) > 0
        and (weight.is_contiguous() or weight.t().is_contiguous())
        and platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and _has_product()
        and not torch.is_autocast_enabled("cpu")
    )


@functools.cache
def _has_product() -> bool:
    """Whether this torch has oneDNN's product with the arguments that are known here."""
    product = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return product is not None and str(product.default._schema) == f"mkldnn::{_SCHEMA}"
