"""The deferred tensor: its place in autograd, the functions it serves, and how it is materialized for all others."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from dllm.fast.deferred.gradient import as_formed, differentiable_once, of_logits
from dllm.fast.deferred.head_inputs import HeadInputs, Parts
from dllm.fast.deferred.logits_view import LogitsView

_log = logging.getLogger("dllm.fast")
aten = torch.ops.aten
_SAME = (aten.detach.default, aten.alias.default, aten.view.default)

# Torch's function -> ours, of the same arguments; it returns NotImplemented where only real logits will do.
served: dict[Callable, Callable] = {}

# Attributes and methods that do not depend on values.
_ATTRIBUTES = (
    "shape dtype device layout ndim requires_grad grad grad_fn is_leaf output_nr itemsize nbytes is_cuda is_cpu "
    "is_meta is_sparse is_quantized is_nested is_mps is_xpu _version _base _backward_hooks retains_grad"
).split()
_METHODS = (
    "dim size stride numel nelement element_size ndimension get_device is_floating_point is_complex is_signed "
    "is_inference _is_view is_contiguous __len__ __hash__ requires_grad_ backward storage_offset"
).split()
_PLAIN = {getattr(Tensor, name).__get__ for name in _ATTRIBUTES} | {getattr(Tensor, name) for name in _METHODS}
_PLAIN |= {Tensor.requires_grad.__set__, Tensor.grad.__set__, torch.is_same_size}
_PLAIN |= {torch.numel, torch.is_floating_point, torch.is_complex, torch.is_inference}
_PLAIN |= {torch.autograd.grad, torch.autograd.backward}
_DETACHED = {Tensor.detach, torch.detach, Tensor.data.__get__}
# In-place changes of shape, storage or place in autograd, which a deferred tensor cannot make.
_REFUSED = "squeeze_ unsqueeze_ transpose_ swapaxes_ swapdims_ t_ resize_ resize_as_ as_strided_ detach_".split()
_REFUSED = {getattr(Tensor, name) for name in _REFUSED} | {Tensor.data.__set__}
_HOOKS = {Tensor.retain_grad, Tensor.register_hook, Tensor.register_post_accumulate_grad_hook}


class DeferredLogits(Tensor):
    """Logits that are computed only when, and only as far as, they are used.

    plan: the :class:`LogitsView`.
    edge: the tensor through which the gradient flows where torch.cat joins its views again; this one itself if it is
        its own.
    computed: the materialized values with their place in autograd, or None. Once they have been written to, every
        function uses them.
    memory: the real tensors, with their versions, of all deferred ones that would share this one's storage.
    """

    @staticmethod
    def __new__(cls, plan: LogitsView, memory: list | None = None):
        return Tensor._make_wrapper_subclass(cls, plan.shape, dtype=plan.dtype, device=plan.head_inputs.hidden.device)

    def __init__(self, plan: LogitsView, memory: list | None = None):
        self.plan, self.computed = plan, None
        self._parent: tuple[DeferredLogits, object] | None = None
        self.sees_gradients = True
        self.memory = [] if memory is None else memory

    @property
    def edge(self) -> DeferredLogits:
        """The tensor that this one was first derived from, if autograd connects the two. A view taken in the forward of
        an autograd function, or without gradients, is its own edge."""
        if self._parent is not None and self._parent[1] is self.grad_fn is not None:
            return self._parent[0].edge
        return self

    def derived(self, plan: LogitsView, *, shares_memory: bool) -> DeferredLogits:
        """A tensor of the same head inputs in another view, with its own place in autograd."""
        result = _Derive.apply(self, plan, self.memory if shares_memory else None)
        result._parent = self, result.grad_fn
        return result

    def bypass(self) -> DeferredLogits:
        """The edge, through which the gradient will flow. Tensors in between will not see it."""
        tensor = self
        while tensor is not self.edge:
            tensor.sees_gradients, tensor = False, tensor._parent[0]
        return self.edge

    def observe_gradient(self) -> None:
        """Keep this tensor's gradient observable: a hook or retain_grad asks for it.

        Raises:
            RuntimeError: a part of it bypasses this tensor already.
        """
        if not self.sees_gradients:
            raise RuntimeError(
                "the gradient of a part of deferred logits that torch.cat has put together with others cannot be "
                "looked at: ask before the cat, or unpatch the model"
            )
        self._parent = None

    def check(self) -> DeferredLogits:
        """This tensor, unless what would be its memory has been written to through another one.

        Raises:
            RuntimeError: it has.
        """
        if any(real is not self.computed and real._version != version for real, version in self.memory):
            raise RuntimeError(
                "deferred logits were written to in place after this view of them was taken: "
                "take the view after the write, or unpatch the model around such code"
            )
        return self

    @property
    def written(self) -> bool:
        """Whether its values are no longer the head's: somebody has written to the real ones."""
        return any(real is self.computed and real._version != version for real, version in self.memory)

    def materialized(self) -> Tensor:
        """The real tensor, the same one each time.

        Raises:
            RuntimeError: it was written to before this tensor got its place in autograd.
        """
        if self.check().computed is not None and self.requires_grad and not self.computed.requires_grad:
            if self.written:
                raise RuntimeError("deferred logits must not be written to in the forward of an autograd function")
            self.computed = None
        if self.computed is None:
            # a metric under no_grad may ask first and a loss later; an inference tensor would not tell of writes to it
            with torch.inference_mode(False), torch.enable_grad():
                logits = _Materialize.apply(self)
                self.computed = self.plan.finish(logits)
            self.memory.append((self.computed, self.computed._version))
        return self.computed

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return _dispatch(function, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        """Below autograd, which has recorded the function already: it runs on the values."""
        first = args[0] if args else None
        if function in _SAME and isinstance(first, cls) and (function is not _SAME[-1] or _same_shape(first, args[1])):
            if first.check().written:
                raise RuntimeError("deferred logits that were written to in place cannot go where autograd sees them")
            return DeferredLogits(first.plan, first.memory)
        if function._schema.is_mutable:
            raise RuntimeError(f"{function} cannot write to deferred logits: unpatch the model around such code")
        log_once(f"{function} asked for real logits, which are computed")
        return function(*tree_map(_values, args), **tree_map(_values, kwargs or {}))


@torch._disable_dynamo  # torch.compile breaks its graph here; without the decorator it would trace, and lose gradients
def _dispatch(function: Callable, args: tuple, kwargs: dict) -> object:
    """Apply a torch function to deferred logits."""
    if function in _REFUSED and isinstance(args[0], DeferredLogits):
        raise RuntimeError(
            f"{_name(function)} cannot change deferred logits in place: unpatch the model around such code"
        )
    if function in _HOOKS:
        args[0].observe_gradient()
    if function in _PLAIN or function in _HOOKS or (function in _DETACHED and not args[0].check().written):
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)
    deferred = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, DeferredLogits)]
    if not any(value.check().written for value in deferred):
        result = _serve(function, args, kwargs)
        if result is not NotImplemented:
            return result
        log_once(f"{_name(function)} asked for real logits, which are computed and stored")
    return function(*tree_map(_materialized, args), **tree_map(_materialized, kwargs))


def defer(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> DeferredLogits:
    """F.linear(hidden [..., H], weight [V, H], bias [V]) as a deferred tensor [..., V]."""
    return _Defer.apply(hidden, weight, bias)


def of_autocast(tensor: DeferredLogits) -> torch.dtype:
    """The dtype of what autocast computes in float32: losses and softmax."""
    return torch.float32 if torch.is_autocast_enabled(tensor.device.type) else tensor.dtype


@functools.cache
def log_once(message: str) -> None:
    """Log a message once per process."""
    _log.warning("deferred logits: %s", message)


class _Defer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias)
        device = hidden.device.type
        ctx.head_inputs = HeadInputs(
            hidden=hidden.detach().reshape(-1, hidden.shape[-1]),
            weight=weight.detach(),
            bias=None if bias is None else bias.detach(),
            wanted=Parts(*ctx.needs_input_grad),
            autocast=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
        )
        rows = ctx.head_inputs.all_rows.view(hidden.shape[:-1])
        ctx.plan = LogitsView(ctx.head_inputs, rows, rows.dim(), ctx.head_inputs.dtype)
        return DeferredLogits(ctx.plan)

    @staticmethod
    @differentiable_once
    def backward(ctx, gradient):
        hidden, *_ = ctx.saved_tensors  # autograd's own check that nothing was written to
        if gradient is None:
            return None, None, None
        d_hidden, d_weight, d_bias = as_formed(gradient, ctx.plan).content.parts
        return None if d_hidden is None else d_hidden.view(hidden.shape), d_weight, d_bias


class _Derive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, edge, plan, memory):
        ctx.set_materialize_grads(False)
        ctx.plans = edge.plan, plan
        return DeferredLogits(plan, memory)

    @staticmethod
    @differentiable_once
    def backward(ctx, gradient):
        before, after = ctx.plans
        return None if gradient is None else as_formed(gradient, after).of(before), None, None


class _Materialize(torch.autograd.Function):
    """Logits [n, V] of a deferred tensor's rows; plain torch shapes them into the tensor."""

    @staticmethod
    def forward(ctx, deferred):
        ctx.plan = deferred.plan
        return ctx.plan.logits()

    @staticmethod
    @differentiable_once
    def backward(ctx, gradient):
        return of_logits(gradient, ctx.plan)


def _serve(function: Callable, args: tuple, kwargs: dict) -> object:
    ours = served.get(function)
    if ours is None:
        return NotImplemented
    try:
        inspect.signature(ours).bind(*args, **kwargs)
    except TypeError:  # a form of the call that is not ours
        return NotImplemented
    return ours(*args, **kwargs)


def _same_shape(tensor: Tensor, shape: list[int]) -> bool:
    return list(tensor.shape) == list(shape)


def _materialized(value: object) -> object:
    return value.materialized() if isinstance(value, DeferredLogits) else value


def _values(value: object) -> object:
    if not isinstance(value, DeferredLogits):
        return value
    return value.plan.finish(value.plan.logits()) if value.check().computed is None else value.computed.detach()


def _name(function: Callable) -> str:
    if getattr(function, "__name__", None) == "__get__":  # an attribute
        function = function.__self__
    return getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or str(function)
