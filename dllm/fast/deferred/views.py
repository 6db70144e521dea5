"""Indexing, reshaping and casting of deferred logits, done on their row indices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dllm.fast.deferred.logits_view import LogitsView
from dllm.fast.deferred.tensor import DeferredLogits, of_autocast, served


def serves(*functions: Callable) -> Callable:
    """A decorator that registers a function as the implementation of these torch functions for deferred logits."""

    def register(ours: Callable) -> Callable:
        served.update(dict.fromkeys(functions, ours))
        return ours

    return register


def _with(tensor: DeferredLogits, rows: Tensor, axis: int | None = None, *, copy: bool = False) -> DeferredLogits:
    """The tensor with other rows, its vocabulary at `axis`, or last."""
    plan = tensor.plan
    axis = rows.dim() if axis is None else axis
    plan = LogitsView(plan.head_inputs, rows, axis, plan.dtype, plan.transform)
    return tensor.derived(plan, shares_memory=not copy)


def vocabulary_last(tensor: object) -> bool:
    """Whether this is a deferred tensor [..., V]."""
    return isinstance(tensor, DeferredLogits) and tensor.plan.axis == tensor.dim() - 1


def within(n_dims: int, *dims: object) -> bool:
    """Whether these are valid dimensions; if not, torch raises its own error."""
    return all(isinstance(dim, int) and -n_dims <= dim < n_dims for dim in dims)


@serves(Tensor.__getitem__)
def _getitem(self, index):
    if not vocabulary_last(self):
        return NotImplemented
    index = index if isinstance(index, tuple) else (index,)
    index = tuple(torch.as_tensor(part) if _is_flat(part) else part for part in index)
    parts = _without_vocabulary(index, self.dim())
    if parts is None:
        return NotImplemented
    copies = not all(part is None or part is ... or isinstance(part, (int, slice)) for part in parts)
    return _with(self, self.plan.rows[parts], copy=copies)


def _is_flat(part: object) -> bool:
    """Whether this is a list of numbers or truth values; torch reads an empty or a nested one in ways of its own."""
    return isinstance(part, list) and bool(part) and {type(entry) for entry in part} in ({int}, {bool})


def _without_vocabulary(index: tuple, n_dims: int) -> tuple | None:
    """The part of the index that selects rows; None where it also selects in the vocabulary, or is of an unknown
    form."""
    if any(isinstance(part, bool) or type(part) not in _CONSUMED for part in index):
        return None
    consumed = sum(_CONSUMED[type(part)](part) for part in index)
    if ... in [part for part in index if not isinstance(part, Tensor)]:
        place = next(i for i, part in enumerate(index) if part is ...)
        if ... in [part for part in index[place + 1 :] if not isinstance(part, Tensor)]:
            return None
        index = (*index[:place], *[slice(None)] * (n_dims - consumed), *index[place + 1 :])
        consumed = n_dims
    if consumed < n_dims:
        return index
    last = index[-1]
    return index[:-1] if consumed == n_dims and isinstance(last, slice) and last == slice(None) else None


def _consumed_by_tensor(part: Tensor) -> int:
    return part.dim() if part.dtype in (torch.bool, torch.uint8) else 1


# How many dimensions a part of an index consumes.
_CONSUMED = {int: lambda _: 1, slice: lambda _: 1, type(None): lambda _: 0, type(...): lambda _: 0}
_CONSUMED |= {Tensor: _consumed_by_tensor}


@serves(Tensor.view, Tensor.reshape)
def _view(self, *shape):
    if len(shape) == 1 and isinstance(shape[0], (tuple, list, torch.Size)):
        shape = tuple(shape[0])
    if not vocabulary_last(self) or not shape or not all(isinstance(size, int) for size in shape):
        return NotImplemented
    rows, vocab_size = self.plan.rows, self.shape[-1]
    if shape[-1] == -1:
        n_rows = 1
        for size in shape[:-1]:
            n_rows *= size
        fits = n_rows == rows.numel() > 0
    else:
        fits = shape[-1] == vocab_size and _fits(shape[:-1], rows.numel())
    return _with(self, rows.reshape(shape[:-1])) if fits else NotImplemented


def _fits(shape: tuple[int, ...], size: int) -> bool:
    """Whether `size` entries can take this shape, one -1 allowed."""
    known = 1
    for entry in shape:
        known *= entry if entry != -1 else 1
    if shape.count(-1) == 0:
        return known == size
    return shape.count(-1) == 1 and known > 0 and size % known == 0


@serves(torch.reshape)
def _reshape(input, shape):
    return _view(input, shape)


@serves(torch.flatten, Tensor.flatten)
def _flatten(input, start_dim=0, end_dim=-1):
    if not within(input.dim(), start_dim, end_dim):
        return NotImplemented
    start, end = (dim % input.dim() for dim in (start_dim, end_dim))
    if not vocabulary_last(input) or not start <= end < input.dim() - 1:
        return NotImplemented
    return _with(input, input.plan.rows.flatten(start, end))


@serves(torch.permute, Tensor.permute)
def _permute(input, *dims):
    dims = tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    if not within(input.dim(), *dims):
        return NotImplemented
    axis, dims = input.plan.axis, [dim % input.dim() for dim in dims]
    if sorted(dims) != list(range(input.dim())):
        return NotImplemented
    of_rows = [dim - (dim > axis) for dim in dims if dim != axis]
    return _with(input, input.plan.rows.permute(of_rows), dims.index(axis))


@serves(torch.transpose, Tensor.transpose, torch.swapaxes, Tensor.swapaxes, torch.swapdims, Tensor.swapdims)
def _transpose(input, dim0, dim1):
    dims = list(range(input.dim()))
    if not within(len(dims), dim0, dim1):
        return NotImplemented
    dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return _permute(input, dims)


@serves(Tensor.mT.__get__)
def _mt(self):
    return _transpose(self, -1, -2) if self.dim() > 1 else NotImplemented


@serves(torch.unsqueeze, Tensor.unsqueeze)
def _unsqueeze(input, dim):
    if not vocabulary_last(input) or not within(input.dim() + 1, dim) or dim in (-1, input.dim()):
        return NotImplemented
    return _with(input, input.plan.rows.unsqueeze(dim % (input.dim() + 1)))


@serves(torch.select, Tensor.select)
def _select(input, dim, index):
    return _of_rows(Tensor.select, input, dim, index)


@serves(torch.narrow, Tensor.narrow)
def _narrow(input, dim, start, length):
    return _of_rows(Tensor.narrow, input, dim, start, length)


@serves(torch.index_select, Tensor.index_select)
def _index_select(input, dim, index):
    return _of_rows(Tensor.index_select, input, dim, index, copy=True)


def _of_rows(function: Callable, tensor: Tensor, dim: int, *args: object, copy: bool = False) -> object:
    """Apply a function along a dimension other than the vocabulary's."""
    if not vocabulary_last(tensor) or not within(tensor.dim(), dim) or dim % tensor.dim() == tensor.dim() - 1:
        return NotImplemented
    return _with(tensor, function(tensor.plan.rows, dim % tensor.dim(), *args), copy=copy)


@serves(torch.cat, torch.concat, torch.concatenate)
def _cat(tensors, dim=0):
    """Of one model's logits with themselves, as the right shift takes them."""
    first = tensors[0]
    if not all(vocabulary_last(tensor) for tensor in tensors) or not within(first.dim(), dim):
        return NotImplemented
    alike = {(id(t.plan.head_inputs), t.dim(), t.plan.dtype, t.plan.transform) for t in tensors}
    one_edge = len({id(t.edge) for t in tensors}) == 1 or not any(t.requires_grad for t in tensors)
    if len(alike) != 1 or not one_edge or dim % first.dim() == first.dim() - 1:
        return NotImplemented
    rows, plan = torch.cat([t.plan.rows for t in tensors], dim % first.dim()), first.plan
    edges = [t.bypass() for t in tensors]
    return edges[0].derived(
        LogitsView(plan.head_inputs, rows, rows.dim(), plan.dtype, plan.transform), shares_memory=False
    )


@serves(Tensor.contiguous)
def _contiguous(self):
    return self


@serves(Tensor.cpu)
def _cpu(self):
    return self if self.device.type == "cpu" else NotImplemented


@serves(torch.clone, Tensor.clone)
def _clone(input, *, memory_format=torch.preserve_format):
    if input.plan.transform:  # cloned to be written to, which the backward of a real softmax does not bear
        return NotImplemented
    return _with(input, input.plan.rows, input.plan.axis, copy=True)


@serves(Tensor.float)
def _float(self):
    return _cast(self, torch.float32)


@serves(Tensor.double)
def _double(self):
    return _cast(self, torch.float64)


@serves(Tensor.half)
def _half(self):
    return _cast(self, torch.float16)


@serves(Tensor.bfloat16)
def _bfloat16(self):
    return _cast(self, torch.bfloat16)


@serves(Tensor.type_as)
def _type_as(self, other):
    return _to(self, other)


@serves(Tensor.to)
def _to(self, *args, dtype=None, device=None, non_blocking=False, copy=False):
    if copy:
        return NotImplemented
    for arg in args[:2]:  # what follows is non_blocking and copy
        if isinstance(arg, torch.dtype):
            dtype = arg
        elif isinstance(arg, Tensor):
            dtype, device = arg.dtype, arg.device
        elif isinstance(arg, (str, int, torch.device)) and not isinstance(arg, bool):
            device = arg
        elif arg is not None:
            return NotImplemented
    if len(args) > 3 or (device is not None and not _same_device(self.device, torch.device(device))):
        return NotImplemented
    if not isinstance(self, DeferredLogits):  # to the dtype of one
        return self.to(dtype=dtype)
    return self if dtype is None else _cast(self, dtype)


def _same_device(one: torch.device, other: torch.device) -> bool:
    """cuda means the current one."""
    if other.type == "cuda" and other.index is None:
        other = torch.device("cuda", torch.cuda.current_device())
    return one == other or (one.type == other.type == "cpu")


def _cast(tensor: DeferredLogits, dtype: torch.dtype) -> object:
    """Cast to a wider dtype, which is exact; a narrower one rounds, which only materialized logits can."""
    plan = tensor.plan
    if dtype == plan.dtype:
        return tensor
    wider = dtype in (torch.float32, torch.float64) and torch.promote_types(plan.dtype, dtype) == dtype
    if plan.transform or not wider:
        return NotImplemented
    return tensor.derived(LogitsView(plan.head_inputs, plan.rows, plan.axis, dtype), shares_memory=False)


@serves(torch.softmax, Tensor.softmax)
def _softmax(input, dim, dtype=None):
    return _transformed(input, "softmax", dim, dtype)


@serves(torch.log_softmax, Tensor.log_softmax)
def _log_softmax(input, dim, dtype=None):
    return _transformed(input, "log_softmax", dim, dtype)


@serves(torch.nn.functional.softmax)
def _f_softmax(input, dim=None, _stacklevel=3, dtype=None):
    return _transformed(input, "softmax", dim, dtype)


@serves(torch.nn.functional.log_softmax)
def _f_log_softmax(input, dim=None, _stacklevel=3, dtype=None):
    return _transformed(input, "log_softmax", dim, dtype)


def _transformed(tensor: Tensor, transform: str, dim: int | None, dtype: torch.dtype | None) -> object:
    plan = tensor.plan
    if not within(tensor.dim(), dim) or dim % tensor.dim() != plan.axis or plan.transform:
        return NotImplemented
    wide = _cast(tensor, of_autocast(tensor) if dtype is None else dtype)
    if wide is NotImplemented:
        return NotImplemented
    plan = LogitsView(plan.head_inputs, plan.rows, plan.axis, wide.dtype, transform)
    return tensor.derived(plan, shares_memory=False)
