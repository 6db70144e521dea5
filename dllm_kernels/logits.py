"""How kernels read logits and temperatures, in PyTorch (in Triton: `logits_triton.py`; in C++: `csrc/logits.h`)."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels import philox

# Draws and statistics of softmax(l / T) clamp T to these, so that no gap times 1 / T is NaN.
STATISTICS_TEMPERATURES = (1e-30, 1e30)


def as_numbers(logits: Tensor) -> Tensor:
    """float32 (or float64) logits with NaN as -inf and +inf as the largest finite float32.

    Example:
        >>> as_numbers(torch.tensor([float("nan"), 1.0])).tolist()
        [-inf, 1.0]
    """
    x = logits if logits.dtype == torch.float64 else logits.float()
    return x.nan_to_num(nan=-torch.inf, posinf=torch.finfo(torch.float32).max, neginf=-torch.inf)


def softcapped(logits: Tensor, softcap: float | None) -> Tensor:
    """:func:`as_numbers` of logits, then c tanh(l / c) of what is above -inf, with c the softcap if there is one.

    In float32 the quotient, the tangent and the product are each rounded, and the bits are the same everywhere. -inf is
    a token that does not exist, and stays. Where the tangent is 1 in float32, from about 8.7 c on, logits are
    equal, and the lowest token is the largest.

    Example:
        >>> softcapped(torch.tensor([1.0, 300.0, -torch.inf]), 30.0)
        tensor([ 0.9996, 30.0000,    -inf])
    """
    l = as_numbers(logits)
    if softcap is None:
        return l
    tanh = torch.tanh if l.dtype == torch.float64 else tanh_float32
    return torch.where(l > -torch.inf, tanh(l / softcap) * softcap, l)


def tanh_float32(x: Tensor) -> Tensor:
    """The hyperbolic tangent of float32 numbers, the same bits everywhere (error below 3 ulp).

    With y = -2 |x| and e^y = 2^n (1 + q), q = r + r^2 P(r) as in :func:`philox.exp_float32`, tanh |x| is
    (1 - e^y) / (1 + e^y). Where |x| is small, n = 0 and 1 - e^y = -q, from which nothing is subtracted.

    Example:
        >>> tanh_float32(torch.tensor([0.0, -1.0, 1e-20, torch.inf])).tolist()
        [0.0, -0.7615941166877747, 9.999999682655225e-21, 1.0]
    """
    y = (-2 * x.abs()).clamp(min=philox._LOWEST_EXPONENT)
    n = (y * philox._LOG2_E + philox._TO_INTEGER) - philox._TO_INTEGER
    r = (y - n * philox._LN2_HIGH) - n * philox._LN2_LOW
    p = torch.full_like(r, philox._EXP_POLYNOMIAL[0])
    for coefficient in philox._EXP_POLYNOMIAL[1:]:
        p = p * r + coefficient
    q = p * (r * r) + r
    power = (q + 1).view(torch.int32) + (n.to(torch.int32) << 23)
    e = power.view(torch.float32)
    return torch.copysign(torch.where(n == 0, -q, 1 - e) / (1 + e), x)
