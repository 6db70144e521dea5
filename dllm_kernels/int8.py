"""Rows of numbers as integers of 8 bits with a scale each, specified."""

from __future__ import annotations

import torch
from torch import Tensor

# Sizes below it count as it: a scale is never 0.
SMALLEST = 2.0**-100
# Columns of which every product fits into 32 bits: 127^2 of each.
MOST_COLUMNS = 2**17


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Rows as integers of 8 bits, symmetric, with one float32 scale a row.

    .. math::
        s_r = \max(\max_k |x_{rk}|, 2^{-100}) / 127, \qquad q_{rk} = \mathrm{round}(x_{rk} (1 / s_r))

    in float32, the reciprocal too, and halves rounded to even; x ≈ s q, with an error of s / 2 at most. A row that
    holds a number that is not finite has q = 0 and s = NaN, so that every product with it is NaN.

    Args:
        x: [R, H], float32, bfloat16 or float16.

    Returns:
        q: int8 [R, H], from -127 to 127.
        s: float32 [R].

    Example:
        >>> quantize_rows(torch.tensor([[1.0, -0.5, 0.0]]))
        (tensor([[127, -64,   0]], dtype=torch.int8), tensor([0.0079]))
    """
    x = x.float()
    largest = x.abs().amax(1, keepdim=True)
    bad = ~largest.isfinite()
    scale = largest.clamp(min=SMALLEST) / 127
    q = torch.where(bad, 0.0, torch.round(x * (1 / scale))).to(torch.int8)
    return q, scale.masked_fill(bad, torch.nan).squeeze(1)
