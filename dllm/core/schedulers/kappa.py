"""Schedulers kappa(t) of Edit Flows: the probability that a position shows the data at t, from 0 at 0 to 1 at 1."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dllm.core.schedulers.common import Number, by_name, evaluate


@dataclass
class BaseKappaScheduler(ABC):
    """A schedule kappa(t) of Edit Flows. A subclass gives kappa and its derivative, and is registered by its name.

    Times are floats or floating-point tensors of any shape; the result has the same type, dtype and shape.

    Raises:
        TypeError, ValueError: a time is not a number, or outside [0, 1].

    Source: Edit Flows (arXiv:2506.09018); the names are those of dLLM 0.1.

    Example:
        >>> LinearKappaScheduler()(0.25)
        0.25
    """

    __registry__: ClassVar[dict[str, type[BaseKappaScheduler]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        BaseKappaScheduler.__registry__[cls.__name__] = cls

    @abstractmethod
    def _kappa(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _kappa_derivative(self, t: Tensor) -> Tensor: ...

    def __call__(self, t: Number) -> Number:
        """The same as `kappa`."""
        return self.kappa(t)

    def kappa(self, t: Number) -> Number:
        """The probability that a position shows the data at time t."""
        return evaluate(self._kappa, t)

    def kappa_derivative(self, t: Number) -> Number:
        """d kappa / dt, at least 0."""
        return evaluate(self._kappa_derivative, t)

    def weight(self, t: Number) -> Number:
        """The rate of edits at time t: w(t) = kappa'(t) / (1 - kappa(t)), infinite at t = 1.

        Example:
            >>> LinearKappaScheduler().weight(0.75)
            4.0
        """
        return evaluate(lambda t: self._kappa_derivative(t) / (1 - self._kappa(t)), t)


@dataclass
class CubicKappaScheduler(BaseKappaScheduler):
    """The cubic schedule kappa(t) = (a + 1) t^3 - (a + b + 1) t^2 + (b + 1) t.

    Example:
        >>> CubicKappaScheduler().kappa(0.5)
        0.5
    """

    a: float = 1.0
    b: float = 1.0

    def _kappa(self, t: Tensor) -> Tensor:
        return (self.a + 1) * t**3 - (self.a + self.b + 1) * t**2 + (self.b + 1) * t

    def _kappa_derivative(self, t: Tensor) -> Tensor:
        return 3 * (self.a + 1) * t**2 - 2 * (self.a + self.b + 1) * t + (self.b + 1)


@dataclass
class LinearKappaScheduler(BaseKappaScheduler):
    """The linear schedule kappa(t) = t.

    Example:
        >>> LinearKappaScheduler().kappa_derivative(0.3)
        1.0
    """

    def _kappa(self, t: Tensor) -> Tensor:
        return t.clone()

    def _kappa_derivative(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass
class CosineKappaScheduler(BaseKappaScheduler):
    """The cosine schedule kappa(t) = 1 - cos(pi/2 t).

    Example:
        >>> round(CosineKappaScheduler().kappa(0.5), 4)
        0.2929
    """

    def _kappa(self, t: Tensor) -> Tensor:
        return 1 - torch.cos(math.pi / 2 * t)

    def _kappa_derivative(self, t: Tensor) -> Tensor:
        return math.pi / 2 * torch.sin(math.pi / 2 * t)


def get_kappa_scheduler_class(name: str) -> type[BaseKappaScheduler]:
    """The scheduler class with this name, in any case, with or without "KappaScheduler".

    Raises:
        ValueError: there is none; the message lists the known names.

    Example:
        >>> get_kappa_scheduler_class("CubicKappaScheduler").__name__
        'CubicKappaScheduler'
    """
    return by_name(BaseKappaScheduler.__registry__, name, "KappaScheduler")


def make_kappa_scheduler(name: str, **options: Any) -> BaseKappaScheduler:
    """Make a scheduler by its name; `options` are the arguments of its class.

    Example:
        >>> make_kappa_scheduler("cubic", a=2.0)
        CubicKappaScheduler(a=2.0, b=1.0)
    """
    return get_kappa_scheduler_class(name)(**options)
