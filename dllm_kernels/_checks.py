"""Checks that run before any launch: shapes, dtypes and devices; values only where the host has them, on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from numbers import Integral, Real

import torch
from torch import Tensor

# Numbers beyond this overflow float32 once they have met a logit or some noise.
LARGEST = 1e30

LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def tensor(
    name: str,
    value: object,
    *,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int | str, ...],
    device: torch.device | None = None,
) -> Tensor:
    """Check one tensor. `shape` holds sizes, or a name where any size will do.

    Raises:
        TypeError: not a tensor, or of another dtype.
        ValueError: another shape or device.

    Example:
        >>> tensor("canvas", torch.zeros(2, 3), dtypes=(torch.int64,), shape=("B", "L"))
        Traceback (most recent call last):
        ...
        TypeError: canvas must be int64, got float32
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} must be {' or '.join(map(_plain, dtypes))}, got {_plain(value.dtype)}")
    fits = value.dim() == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, value.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must have shape [{', '.join(map(str, shape))}], got {list(value.shape)}")
    if device is not None and value.device != device:
        raise ValueError(f"{name} must be on {device}, got {value.device}")
    return value


def logits(value: object) -> None:
    """Check logits [R, V] of any row stride, as the operations on a whole vocabulary take them.

    Example:
        >>> logits(torch.zeros(2, 0))
        Traceback (most recent call last):
        ...
        ValueError: logits must have at least one token per row, got shape [2, 0]
    """
    tensor("logits", value, dtypes=LOGIT_DTYPES, shape=("R", "V"))
    n_rows, vocab_size = value.shape
    if vocab_size == 0:
        raise ValueError(f"logits must have at least one token per row, got shape [{n_rows}, 0]")
    if vocab_size > 2**31 - 2**16:
        raise ValueError(f"logits must have fewer than 2^31 - 2^16 tokens per row, got {vocab_size}")
    if value.stride(1) != 1 and vocab_size > 1:
        raise ValueError(f"logits must have adjacent tokens (stride 1 in the last dimension), got {value.stride()}")


def per_row(name: str, value: int | float | Tensor, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number, a one-element tensor or a tensor [R], as [R] of `dtype`; what is single is expanded with stride 0.

    Example:
        >>> per_row("step", 3, 2, torch.int64, torch.device("cpu"))
        tensor([3, 3])
    """
    kind = "an integer" if dtype == torch.int64 else "a number"
    if isinstance(value, Tensor):
        integral = not value.is_floating_point() and not value.is_complex() and value.dtype != torch.bool
        if not (integral or (dtype.is_floating_point and value.is_floating_point())):
            raise TypeError(f"{name} must be {kind} or a tensor of them, got a tensor of {_plain(value.dtype)}")
        if value.device != device:
            raise ValueError(f"{name} must be on {device}, got {value.device}")
        if value.numel() != 1 and value.shape != (rows,):
            raise ValueError(f"{name} must have one element or shape [{rows}], got {list(value.shape)}")
        flat = value.to(dtype) if value.shape == (rows,) else value.to(dtype).reshape(1)
        return flat.expand(rows)
    if isinstance(value, bool) or not isinstance(value, Real if dtype.is_floating_point else Integral):
        raise TypeError(f"{name} must be {kind} or a tensor of them, got {type(value).__name__}")
    if dtype == torch.int64:
        value = int64(name, value)
    return torch.full((1,), value, dtype=dtype, device=device).expand(rows)


def every_row(name: str, values: Tensor, good: Tensor, rule: str) -> None:
    """Check the values [R] of a CPU tensor against a rule that `good` [R] says they keep; on a device nothing is read.

    Raises:
        ValueError: a row breaks the rule.

    Example:
        >>> every_row("row_weight", torch.tensor([1.0, -2.0]), torch.tensor([True, False]), "at least 0")
        Traceback (most recent call last):
        ...
        ValueError: row_weight must be at least 0, got -2.0 in row 1
    """
    if values.device.type == "cpu" and not torch.compiler.is_compiling() and not good.all().tolist():
        row = good.tolist().index(False)
        raise ValueError(f"{name} must be {rule}, got {values[row].tolist()} in row {row}")


def slices(given: Iterable[tuple[int, Tensor]], n: int, vocab_size: int, multiple: int) -> Iterator[tuple[int, Tensor]]:
    """Hand on slices (first token, logits [n, width]) of a vocabulary, checking that they cover it in order.

    Raises:
        ValueError: a gap, an overlap, another number of rows, a slice that begins between multiples of `multiple`.

    Example:
        >>> list(slices([(4, torch.zeros(2, 3))], 2, 7, 4))
        Traceback (most recent call last):
        ...
        ValueError: slices must cover the vocabulary in order, got one of shape [2, 3] at token 4 for token 0
    """
    covered = 0
    for first, logits in given:
        if first != covered or logits.shape[0] != n:
            raise ValueError(
                f"slices must cover the vocabulary in order, got one of shape {list(logits.shape)} at token {first} "
                f"for token {covered}"
            )
        if first % multiple:
            raise ValueError(f"slices must begin at multiples of {multiple} tokens, got one at {first}")
        covered += logits.shape[1]
        yield first, logits
        del logits  # before the next slice takes its place
    if covered != vocab_size:
        raise ValueError(f"slices must cover a vocabulary of {vocab_size} tokens, got {covered}")


def int64(name: str, value: object) -> int:
    """An integer of Python or numpy, as a Python one.

    Raises:
        TypeError: no integer.
        ValueError: more than 64 bits with the sign.

    Example:
        >>> int64("mask_id", 7)
        7
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must fit into 64 bits, got {value}")
    return int(value)


def number(name: str, value: object) -> float:
    """A number of Python or numpy, infinite or not, as a float.

    Raises:
        TypeError: no number.
        ValueError: NaN, or finite and beyond 1e30 in size.

    Example:
        >>> number("threshold", 0.5)
        0.5
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (-LARGEST <= value <= LARGEST or value in (math.inf, -math.inf)):
        raise ValueError(f"{name} must be infinite or from {-LARGEST} to {LARGEST}, got {value}")
    return float(value)


def finite_at_least_zero(name: str, value: object) -> float:
    """A number that may not be negative, as a float.

    Raises:
        TypeError: no number.
        ValueError: negative, infinite, NaN or beyond 1e30.

    Example:
        >>> finite_at_least_zero("temperature", -1.0)
        Traceback (most recent call last):
        ...
        ValueError: temperature must be finite and at least 0, got -1.0
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {value}")
    if value > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST}, got {value}")
    return float(value)


def softcap(value: object) -> float | None:
    """The c of c tanh(l / c), as a float; None for none.

    Raises:
        TypeError: no number.
        ValueError: not above 0, infinite, NaN or beyond 1e30.

    Example:
        >>> softcap(30)
        30.0
    """
    if value is None:
        return None
    value = finite_at_least_zero("softcap", value)
    if value == 0:
        raise ValueError("softcap must be above 0, or None for none, got 0.0")
    return value


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
