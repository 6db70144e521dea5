"""The gradient of deferred logits, kept as gradients of hidden states and head.

It passes through autograd as a tensor of the logits' shape: through hooks, checkpoints and wrappers between the head
and the loss. Two such gradients can be added; if code reads the values, they are computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from dllm.fast.deferred.head_inputs import Parts
from dllm.fast.deferred.logits_view import LogitsView

aten = torch.ops.aten
_SAME = (aten.detach.default, aten.alias.default)


@dataclass(slots=True, eq=False)
class DeferredGradient:
    """What a gradient stands for, shared by its aliases.

    parts: gradients of hidden states, weight and bias, None where not wanted.
    terms: functions, each the gradient of all logits [N, V] by one use of them; their sum is what this stands for.
    real: the values once code has read them. It may have written to them, so from then on they are the gradient.
    """

    parts: Parts
    terms: tuple[Callable[[], Tensor], ...]
    real: Tensor | None = None


class FormedGradient(Tensor):
    """Gradients of hidden states, weight and bias, in the shape of the tensor whose gradient they stand for.

    plan: the :class:`LogitsView` of that tensor.
    content: the :class:`DeferredGradient`.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, layout: LogitsView, content: DeferredGradient):
        device = layout.head_inputs.hidden.device
        return Tensor._make_wrapper_subclass(cls, layout.shape, dtype=layout.dtype, device=device)

    def __init__(self, layout: LogitsView, content: DeferredGradient):
        self.plan, self.content = layout, content

    def of(self, layout: LogitsView) -> FormedGradient:
        """The same, for another tensor of the same head inputs."""
        content = self.content
        if content.real is not None:  # what writes to it writes below autograd, where no version is kept
            content = of_logits(self.plan.d_logits(content.real.clone()), self.plan).content
        return FormedGradient(layout, DeferredGradient(content.parts, content.terms))

    def dense(self) -> Tensor:
        """The values, the same tensor each time: a hook may write to it."""
        if self.content.real is None:
            self.content.real = self.plan.gather(sum(term() for term in self.content.terms))
        return self.content.real

    def numpy(self, **options: object):  # these three look past autograd and dispatch
        return self.dense().numpy(**options)

    def tolist(self) -> list:
        return self.dense().tolist()

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.dense().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _SAME:
            return FormedGradient(args[0].plan, args[0].content)
        if function is aten.clone.default:
            return args[0].of(args[0].plan)
        if function is aten.add.Tensor and not kwargs and all(isinstance(arg, Tensor) and arg.dim() for arg in args):
            return _sum(*args)
        return function(*tree_map(_dense, args), **tree_map(_dense, kwargs))


def differentiable_once(backward: Callable) -> Callable:
    """A decorator for backwards that refuse to be differentiated. torch's own once_differentiable would treat a
    gradient as a constant if the upstream one is, and a penalty on it would silently have no gradient."""

    @functools.wraps(backward)
    def refusing(ctx, *gradients):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "deferred logits can be differentiated once, and create_graph=True asks for more: "
                "unpatch the model around such code"
            )
        return backward(ctx, *gradients)

    return refusing


def as_formed(gradient: Tensor, layout: LogitsView) -> FormedGradient:
    """A gradient of a tensor of this layout, formed if it is not yet."""
    if isinstance(gradient, FormedGradient):
        return gradient.of(layout)
    return of_logits(layout.d_logits(gradient), layout)


def of_logits(d_logits: Tensor, layout: LogitsView) -> FormedGradient:
    """The gradient of a tensor of this layout, from one of the logits [n, V] of its rows."""
    parts = layout.head_inputs.gradients(d_logits, layout.rows.flatten())
    return FormedGradient(layout, DeferredGradient(parts, (lambda: layout.scatter(d_logits),)))


def _sum(one: Tensor, other: Tensor) -> FormedGradient:
    """The sum of two gradients of one tensor, of which one at least is formed."""
    layout = one.plan if isinstance(one, FormedGradient) else other.plan
    one, other = as_formed(one, layout).content, as_formed(other, layout).content
    parts = Parts(*(a if a is None else a + b for a, b in zip(one.parts, other.parts, strict=True)))
    return FormedGradient(layout, DeferredGradient(parts, one.terms + other.terms))


def _dense(value: object) -> object:
    return value.dense() if isinstance(value, FormedGradient) else value
