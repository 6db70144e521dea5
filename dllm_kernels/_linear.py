"""The product with a language-model head, by the faster of the libraries that torch brings."""

from __future__ import annotations

import functools
import platform

import torch
import torch.nn.functional as F
from torch import Tensor

# what is known to work; where another torch has another one, its eager product serves
_SCHEMA = "_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear, without gradients: hidden [N, H], weight [V, H], bias [V] or None -> [N, V].

    In float32 on an x86 CPU it is oneDNN's product, the one torch.compile takes, where eager torch takes MKL's: for a
    head's few rows and long vocabulary that is twice as fast on AMD (benchmarks/LOG.md).

    Example:
        >>> linear(torch.ones(1, 2), torch.ones(3, 2), None)
        tensor([[2., 2., 2.]])
    """
    if by_onednn(hidden, weight):
        return torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
    return F.linear(hidden, weight, bias)


def by_onednn(hidden: Tensor, weight: Tensor) -> bool:
    """Whether :func:`linear` takes oneDNN's product."""
    return (
        hidden.device.type == "cpu"
        and hidden.dtype == weight.dtype == torch.float32
        and len(hidden) > 0
        and weight.is_contiguous()
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
