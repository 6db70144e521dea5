"""CART, the loss weights of Dream: masked tokens near visible ones weigh more."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from dllm_kernels import _checks

_CART = re.compile(r"cart\[geo_p:(?P<p>[^\]]*)\]")


def cart_weights(masked: Tensor, p: float) -> Tensor:
    r"""The weight of every masked token by its distances to the visible ones, float32 [B, L].

    .. math::
        w_i = \sum_{j\ visible} \tfrac12 p (1 - p)^{|i - j| - 1}

    for a masked token i; 0 for a visible one, and in a row without a visible token. Everything that is not masked is
    visible: prompt, BOS and padding too. The sums to the left and to the right are two first-order recurrences,
    c_i = (1 - p) c_{i-1} + [i - 1 is visible], of which all rows take log2(L) doublings.

    Args:
        masked: bool [B, L].
        p: of the geometric distribution, 0 < p <= 1.

    Raises:
        TypeError, ValueError: `masked` is not bool [B, L], or p is outside its range.

    Source: Dream (arXiv:2508.15487), context-adaptive rescheduling of noise at token level.

    Example:
        >>> cart_weights(torch.tensor([[False, True, True]]), p=0.5)
        tensor([[0.0000, 0.2500, 0.1250]])
    """
    if masked.dtype != torch.bool or masked.dim() != 2:
        raise TypeError(f"masked must be a bool tensor [B, L], got {masked.dtype} {list(masked.shape)}")
    check_p(p)
    visible = (~masked).double()
    both_sides = _before(visible, 1 - p) + _before(visible.flip(1), 1 - p).flip(1)
    return torch.where(masked, p / 2 * both_sides, 0).float()


def _before(visible: Tensor, decay: float) -> Tensor:
    """The sum over d >= 1 of decay^(d-1) visible[i - d], for every i."""
    summed, reach = _shifted(visible, 1), 1
    while reach < visible.shape[1] and decay**reach > 0:  # covers the distances up to `reach`
        summed = summed + decay**reach * _shifted(summed, reach)
        reach *= 2
    return summed


def _shifted(values: Tensor, by: int) -> Tensor:
    """The values `by` columns to the left, 0 where there are none."""
    return torch.nn.functional.pad(values, (by, 0))[:, : values.shape[1]]


def cart_p(loss_weight_type: str) -> float | None:
    """The p of "cart[geo_p:0.3]"; None for a name that does not begin with "cart".

    Raises:
        ValueError: it begins so and cannot be read, or p is outside its range. (dLLM 0.1 took 0.3 then.)

    Example:
        >>> cart_p("cart[geo_p:0.3]"), cart_p("uniform")
        (0.3, None)
    """
    if not str(loss_weight_type).startswith("cart"):
        return None
    found = _CART.fullmatch(loss_weight_type)
    try:
        p = float(found["p"])
    except (TypeError, ValueError):
        raise ValueError(f"loss_weight_type must be like cart[geo_p:0.3], got {loss_weight_type!r}") from None
    return check_p(p)


def check_p(p: object) -> float:
    """Check that p lies in (0, 1], and return it.

    Raises:
        TypeError, ValueError: it does not.
    """
    p = _checks.number("p", p)
    if not 0 < p <= 1:
        raise ValueError(f"p of CART must lie in (0, 1], got {p}")
    return p
