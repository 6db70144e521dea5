"""Shared parts of both kinds of schedulers: evaluation for numbers and tensors, and look-up by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import TypeVar

import torch
from torch import Tensor

Number = float | Tensor
Scheduler = TypeVar("Scheduler")


def evaluate(formula: Callable[..., Tensor], *times: Number) -> Number:
    """Evaluate a formula of times in [0, 1]: floats give a float, computed in float64; tensors give a tensor.

    Raises:
        TypeError: a time is neither a number nor a floating-point tensor.
        ValueError: a time outside [0, 1], or NaN.

    Example:
        >>> evaluate(torch.sqrt, 0.25)
        0.5
    """
    tensors = [_checked(t) for t in times]
    value = formula(*tensors)
    return value if any(isinstance(t, Tensor) for t in times) else float(value)


def by_name(registry: Mapping[str, type[Scheduler]], name: object, suffix: str) -> type[Scheduler]:
    """The class with this name, in any case, with or without `suffix`: "LinearAlphaScheduler" is also "linear".

    Raises:
        ValueError: there is none; the message lists the known names.
    """
    for known, found in registry.items():
        if isinstance(name, str) and name.lower() in (known.lower(), known.removesuffix(suffix).lower()):
            return found
    raise ValueError(f"Unknown scheduler {name!r}: known are {', '.join(sorted(registry))}")


def _checked(t: Number) -> Tensor:
    if not isinstance(t, Tensor):
        if isinstance(t, bool) or not isinstance(t, Real):
            raise TypeError(f"t must be a number or a tensor, got {type(t).__name__}")
        t = torch.tensor(t, dtype=torch.float64)
    if not t.is_floating_point():
        raise TypeError(f"t must be a floating-point tensor, got {str(t.dtype).removeprefix('torch.')}")
    outside = ~((t >= 0) & (t <= 1))
    if bool(outside.any()):
        raise ValueError(f"t must lie in [0, 1], got {float(t[outside].flatten()[0])}, which is not in it")
    return t
