"""Attention of every query to all keys that it sees, for the short canvases of a CPU: in a batch, or in packed rows."""

from __future__ import annotations

import sys
from types import ModuleType

import torch
from torch import Tensor

from dllm_kernels import _checks, _impl

# A head's dimensions fill whole vectors.
MULTIPLE = 32


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, scale: float, impl: str = "auto"
) -> Tensor:
    r"""Scaled dot product attention.

    .. math::
        o_i = \frac{\sum_j w_{ij} v_j}{\sum_j w_{ij}}, \qquad w_{ij} = m_{ij}\, e^{s\, q_i \cdot k_j}

    A query that sees no key gets zeros. Sums are float32; w is rounded to bfloat16 before it meets values of that
    dtype, as in PyTorch's kernels. On a CPU a query has the same bits in every batch, beside every other query, with
    any number of threads; keys that none of 32 neighbouring queries sees cost nothing where they lie at the ends, as
    beside a sliding window.

    Memory beyond arguments and result: 4 S (2 d + 32) + 128 d bytes for each thread; 4 S (d + 32) + 64 d in bfloat16.

    Args:
        query: q, [B, heads, L, d], float32, bfloat16 or float16; d is a multiple of 32.
        key, value: k and v, [B, heads of keys, S, d], of the same dtype. Neighbouring heads of queries share a head of
            keys where there are fewer.
        mask: m, bool [B, L, S]; a size of 1 is repeated. None: all is seen.
        scale: s.
        impl: "auto", "reference" or "cpu"; an explicit one never falls back. There is none for GPUs, which
            torch.nn.functional.scaled_dot_product_attention serves.

    Returns:
        o, [B, heads, L, d]. No gradients.

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has run.
        RuntimeError: `query`, `key` or `value` needs a gradient, or the implementation asked for is not available.

    Source: Vaswani et al., "Attention is all you need" (arXiv:1706.03762).

    Example:
        >>> q = torch.zeros(1, 1, 1, 32)
        >>> k, v = torch.zeros(1, 1, 3, 32), torch.arange(3.0).view(1, 1, 3, 1).expand(1, 1, 3, 32)
        >>> attention(q, k, v, torch.tensor([[[True, True, False]]]), scale=1.0)[0, 0, 0, :2]
        tensor([0.5000, 0.5000])
    """
    _check_heads(query, key, value)
    (batch, _, length, _), keys = query.shape, key.shape[2]
    if keys == 0:
        raise ValueError("S must be at least 1, got 0")
    if mask is not None:
        _checks.tensor("mask", mask, dtypes=(torch.bool,), shape=("B", "L", "S"), device=query.device)
        if any(size not in (1, whole) for size, whole in zip(mask.shape, (batch, length, keys), strict=True)):
            raise ValueError(f"mask must have shape [{batch}, {length}, {keys}] or ones in it, got {list(mask.shape)}")
        mask = mask.expand(batch, length, keys)
    query, key, value = _adjacent(query, key, value)
    return _module(impl, query.device).attention(query, key, value, mask, float(scale))


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    *,
    scale: float,
    window: int | None = None,
    impl: str = "auto",
) -> Tensor:
    """:func:`attention` within rows that lie one after the other in a long one: nothing is padded, no mask exists.

    On a CPU a row has the same bits alone and in any company, those that :func:`attention` gives it.

    Memory beyond arguments and result: as :func:`attention` takes it for the longest row.

    Args:
        query: q, [1, heads, T, d], float32, bfloat16 or float16; d is a multiple of 32.
        key, value: k and v, [1, heads of keys, T, d], of the same dtype. Neighbouring heads of queries share a head of
            keys where there are fewer.
        ends: int32 [rows + 1], where rows begin and end: row r is tokens `ends[r]` to `ends[r + 1]` - 1. From 0 to T;
            rows may be empty. A GPU is waited for.
        scale: s.
        window: a query sees the keys of its row less than so many tokens away; None: all of them.
        impl: as :func:`attention` takes it.

    Returns:
        o, [1, heads, T, d]. No gradients.

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has run.
        RuntimeError: `query`, `key` or `value` needs a gradient, or the implementation asked for is not available.

    Example:
        >>> v = torch.arange(3.0).view(1, 1, 3, 1).expand(1, 1, 3, 32)
        >>> packed_attention(v, v, v, torch.tensor([0, 1, 3], dtype=torch.int32), scale=0.0)[0, 0, :, 0]
        tensor([0.0000, 1.5000, 1.5000])
    """
    _check_heads(query, key, value)
    (batch, _, tokens, _), keys = query.shape, key.shape[2]
    if batch != 1 or tokens != keys:
        raise ValueError(f"packed rows must be one, as long for queries as for keys, got {batch}, {tokens} and {keys}")
    _checks.tensor("ends", ends, dtypes=(torch.int32,), shape=("rows + 1",), device=query.device)
    bounds = ends.tolist()
    if not bounds or bounds != sorted(bounds) or (bounds[0], bounds[-1]) != (0, tokens):
        raise ValueError(f"ends must go from 0 to {tokens} and not fall, got {bounds}")
    if window is not None and _checks.int64("window", window) < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    query, key, value = _adjacent(query, key, value)
    return _module(impl, query.device).packed_attention(query, key, value, ends.contiguous(), window, float(scale))


def _check_heads(query: Tensor, key: Tensor, value: Tensor) -> None:
    _checks.tensor("query", query, dtypes=_checks.LOGIT_DTYPES, shape=("B", "heads", "L", "d"))
    batch, heads, _, width = query.shape
    same = dict(dtypes=(query.dtype,), device=query.device)
    _checks.tensor("key", key, shape=(batch, "heads of keys", "S", width), **same)
    shared, keys = key.shape[1:3]
    _checks.tensor("value", value, shape=(batch, shared, keys, width), **same)
    if width == 0 or width % MULTIPLE:
        raise ValueError(f"d must be a multiple of {MULTIPLE}, got {width}")
    if shared == 0 or heads % shared:
        raise ValueError(f"heads must be a multiple of the heads of keys, got {heads} and {shared}")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        raise RuntimeError("attention has no gradient, and its arguments need one: scaled_dot_product_attention has")


def _adjacent(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, each of them adjacent along d."""
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in tensors)


def _module(impl: str, device: torch.device) -> ModuleType:
    """The module that implements both functions for tensors on a device."""
    if impl == "triton":
        raise ValueError("impl='triton' does not exist for attention: PyTorch's kernels serve GPUs")
    name = "reference" if impl == "auto" and device.type != "cpu" else impl
    return sys.modules[_impl.imported("attention", name, device)]
