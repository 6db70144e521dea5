"""Schedulers alpha(t): the probability that a token is not masked at time t, from 1 at t = 0 to 0 at t = 1."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dllm.core.schedulers.common import Number, by_name, evaluate

# Keeps the weight finite at t = 0, where nothing is masked.
EPSILON = 1e-6


@dataclass
class BaseAlphaScheduler(ABC):
    """A masking schedule alpha(t). A subclass gives alpha and its derivative, and is registered by its name.

    Times are floats or floating-point tensors of any shape; the result has the same type, dtype and shape.

    Raises:
        TypeError, ValueError: a time is not a number, or outside [0, 1].

    Source: MDLM (arXiv:2406.07524); the names are those of dLLM 0.1.

    Example:
        >>> LinearAlphaScheduler()(0.25)
        0.75
    """

    __registry__: ClassVar[dict[str, type[BaseAlphaScheduler]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        BaseAlphaScheduler.__registry__[cls.__name__] = cls

    @abstractmethod
    def _alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _alpha_derivative(self, t: Tensor) -> Tensor: ...

    def __call__(self, t: Number) -> Number:
        """The same as `alpha`."""
        return self.alpha(t)

    def alpha(self, i: Number) -> Number:
        """The probability that a token is not masked at time i."""
        return evaluate(self._alpha, i)

    def alpha_derivative(self, i: Number) -> Number:
        """d alpha / dt at time i, at most 0."""
        return evaluate(self._alpha_derivative, i)

    def reverse_mask_prob(self, s: Number, t: Number) -> Number:
        """The probability that a token masked at t is still masked at s: (1 - alpha(s)) / (1 - alpha(t)), s < t.

        Raises:
            ValueError: s is not less than t.

        Example:
            >>> LinearAlphaScheduler().reverse_mask_prob(0.25, 0.5)
            0.5
        """
        return evaluate(self._reverse_mask_prob, s, t)

    def weight(self, i: Number) -> Number:
        """The loss weight of a masked token at time i: w(t) = -alpha'(t) / (1 - alpha(t) + 1e-6). Linear: 1 / t.

        Example:
            >>> round(LinearAlphaScheduler().weight(0.5), 4)
            2.0
        """
        return evaluate(lambda t: -self._alpha_derivative(t) / (1 - self._alpha(t) + EPSILON), i)

    def _reverse_mask_prob(self, s: Tensor, t: Tensor) -> Tensor:
        if not bool((s < t).all()):
            raise ValueError("s must be less than t: s < t in every element")
        return (1 - self._alpha(s)) / (1 - self._alpha(t))


@dataclass
class LinearAlphaScheduler(BaseAlphaScheduler):
    """The linear schedule alpha(t) = 1 - t.

    Example:
        >>> LinearAlphaScheduler().alpha_derivative(0.3)
        -1.0
    """

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _alpha_derivative(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)


@dataclass
class CosineAlphaScheduler(BaseAlphaScheduler):
    """The cosine schedule alpha(t) = 1 - cos(pi/2 (1 - t)).

    Example:
        >>> CosineAlphaScheduler().alpha(1.0)
        0.0
    """

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - torch.cos(math.pi / 2 * (1 - t))

    def _alpha_derivative(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * torch.sin(math.pi / 2 * (1 - t))


def get_alpha_scheduler_class(name: str) -> type[BaseAlphaScheduler]:
    """The scheduler class with this name, in any case, with or without "AlphaScheduler".

    Raises:
        ValueError: there is none; the message lists the known names.

    Example:
        >>> get_alpha_scheduler_class("cosine").__name__
        'CosineAlphaScheduler'
    """
    return by_name(BaseAlphaScheduler.__registry__, name, "AlphaScheduler")


def make_alpha_scheduler(name: str, **options: Any) -> BaseAlphaScheduler:
    """Make a scheduler by its name; `options` are the arguments of its class.

    Example:
        >>> make_alpha_scheduler("LinearAlphaScheduler")
        LinearAlphaScheduler()
    """
    return get_alpha_scheduler_class(name)(**options)
