"""A tensor that records which operators are applied to it, and two rules for what is allowed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
# Operators that copy all values of a tensor, of any shape.
_COPIES = {aten.alias, aten.detach, aten.clone, aten._to_copy, aten.lift_fresh}
# Operators that keep the last axis and may regroup the rows.
_RESHAPES = {aten.view, aten._unsafe_view, aten._reshape_alias, aten.unsqueeze, aten.squeeze, aten.expand}
# Operators that draw or fill in a number for each entry.
_FILLS = {aten.empty_like, aten.zeros_like, aten.ones_like, aten.rand_like, aten.bernoulli_, aten.native_dropout}
_PRODUCTS = {aten.mm: 0, aten.matmul: 0, aten.linear: 0, aten.addmm: 1}  # and which factor holds the rows
# Operators that cut a tensor along an axis, and where they are told which.
_CUTS = {aten.slice: 1, aten.split: 2, aten.split_with_sizes: 2, aten.chunk: 2}
_ALONG_ROWS = {aten.mean, aten.sum, aten.amax, aten._softmax, aten._log_softmax}
ROWS = 7  # of a tensor under :func:`is_rowwise`; no other axis may have this size


@dataclass(slots=True, eq=False)
class Trace:
    """The operators applied to a traced tensor and to all tensors computed from it.

    rule: whether an operator with these arguments and this result is allowed.
    exception: name of the first operator that was not.
    """

    rule: Callable[[object, tuple, dict, object], bool]
    exception: str | None = None


class TracedTensor(Tensor):
    """A tensor that checks each operator applied to it, and to what is computed from it, against a rule.

    It computes as any tensor does; its values are in `values`. Conversion to NumPy and the like raises a RuntimeError.

    Example:
        >>> traced = TracedTensor(torch.ones(2, 3), is_copy)
        >>> _ = traced.double().clone()
        >>> traced.trace.exception
        >>> _ = traced * 1
        >>> traced.trace.exception
        'aten.mul'
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor, rule: Callable | Trace):
        options = dict(dtype=values.dtype, device=values.device, strides=values.stride())
        return Tensor._make_wrapper_subclass(cls, values.shape, **options)

    def __init__(self, values: Tensor, rule: Callable | Trace):
        self.values, self.trace = values, rule if isinstance(rule, Trace) else Trace(rule)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*tree_map(_values, args), **tree_map(_values, kwargs))
        trace = next(part.trace for part in tree_leaves((args, kwargs)) if isinstance(part, TracedTensor))
        if trace.exception is None and not trace.rule(function, args, kwargs, result):
            trace.exception = str(function.overloadpacket)
        return tree_map(lambda part: TracedTensor(part, trace) if isinstance(part, Tensor) else part, result)


def is_copy(function: object, args: tuple, kwargs: dict, result: object) -> bool:
    """The rule that allows copies and casts of a whole tensor only, of any shape."""
    if function.overloadpacket is aten.slice:
        _, _, start, end, step = (*args, *(0, None, None, 1)[len(args) - 1 :])
        return start in (None, 0) and end in (None, sys.maxsize) and step == 1
    return function.overloadpacket in _COPIES


def is_rowwise(function: object, args: tuple, kwargs: dict, result: object) -> bool:
    """The rule that allows operators that compute each row (all axes but the last, `ROWS` in all) from that row and
    from values that all rows share."""
    packet, first = function.overloadpacket, args[0]
    if function._schema.is_mutable and not isinstance(first, TracedTensor):
        return False
    if not all(_has_rows(part) for part in tree_leaves((args, kwargs)) if isinstance(part, TracedTensor)):
        return False
    if packet in _COPIES or packet in _FILLS:
        return True
    if packet in _RESHAPES:
        return _has_rows(result) and result.shape[-1] == first.shape[-1]
    if packet in _PRODUCTS:
        place = _PRODUCTS[packet]
        rows, factor, *bias = *args[place : place + 2], *args[:place], *args[place + 2 :]
        return (
            isinstance(rows, TracedTensor)
            and factor.dim() == 2
            and not isinstance(factor, TracedTensor)
            and _lines_up(rows, bias)
        )
    if packet in _CUTS:
        axis = args[_CUTS[packet]] if len(args) > _CUTS[packet] else 0
        return axis in (-1, first.dim() - 1) and all(map(_has_rows, tree_leaves(result)))
    if packet in _ALONG_ROWS:
        last = first.dim() - 1
        return args[1:2] in ((-1,), (last,), ([-1],), ([last],)) and _has_rows(result)
    if packet is aten.native_layer_norm:
        return isinstance(first, TracedTensor) and len(args[1]) == 1
    return torch.Tag.pointwise in function.tags and "out" not in kwargs and _lines_up(*args)


def _has_rows(tensor: Tensor) -> bool:
    return tensor.dim() > 1 and tensor.numel() == ROWS * tensor.shape[-1]


def _lines_up(*args: object) -> bool:
    """Whether row r of a traced tensor is combined with row r of the other traced ones only, and untraced tensors are
    the same for all rows."""
    tensors = [part for part in tree_leaves(args) if isinstance(part, Tensor)]
    rows = {part.shape[:-1] for part in tensors if isinstance(part, TracedTensor)}
    shared = (part for part in tensors if not isinstance(part, TracedTensor))
    return len(rows) == 1 and all(part.dim() == 0 or part.numel() == part.shape[-1] for part in shared)


def _values(value: object) -> object:
    return value.values if isinstance(value, TracedTensor) else value
