"""A tensor that notes what is computed with it, and two rules about that."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
# Operators that hand on all numbers of a tensor, whatever its shape.
_HANDED_ON = {aten.alias, aten.detach, aten.clone, aten._to_copy, aten.lift_fresh}
# What keeps the last axis and may group rows in another way.
_RESHAPES = {aten.view, aten._unsafe_view, aten._reshape_alias, aten.unsqueeze, aten.squeeze, aten.expand}
# Numbers that are drawn or filled in for each entry.
_FILLS = {aten.empty_like, aten.zeros_like, aten.ones_like, aten.rand_like, aten.bernoulli_, aten.native_dropout}
_PRODUCTS = {aten.mm: 0, aten.matmul: 0, aten.linear: 0, aten.addmm: 1}  # and which factor holds the rows
_ALONG_ROWS = {aten.mean, aten.sum, aten.amax, aten._softmax, aten._log_softmax}
ROWS = 7  # of a tensor that is to keep its rows apart; no other axis is to be taken for them


@dataclass(slots=True, eq=False)
class Trace:
    """What was computed with a marked tensor and what was made of it.

    rule: whether an operator, given these arguments and with this result, is allowed.
    exception: the first that was not, by name.
    """

    rule: Callable[[object, tuple, dict, object], bool]
    exception: str | None = None


class Marked(Tensor):
    """A tensor whose operators, and those of what comes out of them, are held against a rule.

    It computes as any tensor does; its numbers are in `values`. Numpy and the like raise a RuntimeError.

    Example:
        >>> marked = Marked(torch.ones(2, 3), is_copy)
        >>> _ = marked.double().clone()
        >>> marked.trace.exception
        >>> _ = marked * 1
        >>> marked.trace.exception
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
        trace = next(part.trace for part in tree_leaves((args, kwargs)) if isinstance(part, Marked))
        if trace.exception is None and not trace.rule(function, args, kwargs, result):
            trace.exception = str(function.overloadpacket)
        return tree_map(lambda part: Marked(part, trace) if isinstance(part, Tensor) else part, result)


def is_copy(function: object, args: tuple, kwargs: dict, result: object) -> bool:
    """Copies and casts of all of a tensor, whatever its shape."""
    if function.overloadpacket is aten.slice:
        _, _, start, end, step = (*args, *(0, None, None, 1)[len(args) - 1 :])
        return start in (None, 0) and end in (None, sys.maxsize) and step == 1
    return function.overloadpacket in _HANDED_ON


def is_rowwise(function: object, args: tuple, kwargs: dict, result: object) -> bool:
    """What computes each of `ROWS` rows, all axes but the last, from that row and from what all rows share."""
    packet, first = function.overloadpacket, args[0]
    if function._schema.is_mutable and not isinstance(first, Marked):
        return False
    if not all(_has_rows(part) for part in tree_leaves((args, kwargs)) if isinstance(part, Marked)):
        return False
    if packet in _HANDED_ON or packet in _FILLS:
        return True
    if packet in _RESHAPES:
        return _has_rows(result) and result.shape[-1] == first.shape[-1]
    if packet in _PRODUCTS:
        place = _PRODUCTS[packet]
        rows, factor, *bias = *args[place : place + 2], *args[:place], *args[place + 2 :]
        return (
            isinstance(rows, Marked) and factor.dim() == 2 and not isinstance(factor, Marked) and _lines_up(rows, bias)
        )
    if packet in _ALONG_ROWS:
        last = first.dim() - 1
        return args[1:2] in ((-1,), (last,), ([-1],), ([last],)) and _has_rows(result)
    if packet is aten.native_layer_norm:
        return isinstance(first, Marked) and len(args[1]) == 1
    return torch.Tag.pointwise in function.tags and "out" not in kwargs and _lines_up(*args)


def _has_rows(tensor: Tensor) -> bool:
    return tensor.dim() > 1 and tensor.numel() == ROWS * tensor.shape[-1]


def _lines_up(*args: object) -> bool:
    """Whether each row of marked tensors meets the same row of the other marked ones, and all rows meet the rest."""
    tensors = [part for part in tree_leaves(args) if isinstance(part, Tensor)]
    rows = {part.shape[:-1] for part in tensors if isinstance(part, Marked)}
    shared = (part for part in tensors if not isinstance(part, Marked))
    return len(rows) == 1 and all(part.dim() == 0 or part.numel() == part.shape[-1] for part in shared)


def _values(value: object) -> object:
    return value.values if isinstance(value, Marked) else value
