"""A linear layer whose weight is stored in 8 bits and whose input is rounded to 8 bits row by row."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from dllm_kernels import _checks, _impl
from dllm_kernels.int8 import MOST_COLUMNS


def int8_linear(
    hidden: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, impl: str = "auto"
) -> Tensor:
    r"""The product of hidden states with a weight of 8 bits, both scaled by row: approximates F.linear.

    .. math::
        y_{rv} = \left(\left(\sum_k q_{rk} W_{vk}\right) s_r\right) t_v + b_v, \qquad h_r \approx s_r q_r

    q and s are :func:`dllm_kernels.int8.quantize_rows` of the hidden states. The sum is an exact integer, is rounded to
    float32 and multiplied there; the result is rounded once to the dtype of the hidden states. So a row has the same
    bits in every batch, with any number of threads, in every implementation. The price is the rounding of h and W:
    about 1 % of the typical size of y, more where a few columns of h are much larger than the rest.

    Memory beyond arguments and result, in bytes: T (R' (H + 4) + 8 H + 2048) on a CPU, for T threads and R' of up to
    128 rows (2 H for H on a CPU without instructions for such products); R (H + 4) on a GPU.

    Args:
        hidden: [..., H], float32, bfloat16 or float16.
        weight: W, int8 [V, H], from -127 to 127.
        scale: t, float32 [V].
        bias: b, float32 [V], or None.
        impl: "auto", "reference", "triton" or "cpu"; an explicit one never falls back.

    Returns:
        [..., V], of the dtype of `hidden`. No gradients.

    Raises:
        TypeError, ValueError: an argument breaks a rule above, or H is not from 1 to 2^17; nothing has run.
        RuntimeError: `hidden` needs a gradient, or the implementation asked for is not available.

    Source: scales by row and by output channel as in LLM.int8() (arXiv:2208.07339), without its outliers.

    Example:
        >>> weight, scale = torch.tensor([[127, 0], [64, -127]], dtype=torch.int8), torch.full((2,), 1 / 127)
        >>> int8_linear(torch.tensor([[1.0, 2.0]]), weight, scale)
        tensor([[ 1.0079, -1.4921]])
    """
    if not isinstance(hidden, Tensor) or hidden.dim() < 1:
        raise TypeError(f"hidden must be a tensor with at least one dimension, got {type(hidden).__name__}")
    width = hidden.shape[-1]
    if not 1 <= width <= MOST_COLUMNS:
        raise ValueError(f"hidden must have from 1 to {MOST_COLUMNS} columns, got {width}")
    rows = hidden.reshape(-1, width)
    _checks.tensor("hidden", rows, dtypes=_checks.LOGIT_DTYPES, shape=("N", "H"))
    device = hidden.device
    _checks.tensor("weight", weight, dtypes=(torch.int8,), shape=("V", width), device=device)
    _checks.tensor("scale", scale, dtypes=(torch.float32,), shape=(len(weight),), device=device)
    if bias is not None:
        _checks.tensor("bias", bias, dtypes=(torch.float32,), shape=(len(weight),), device=device)
    if torch.is_grad_enabled() and hidden.requires_grad:
        raise RuntimeError("int8_linear has no gradient, and hidden needs one: train with weights that are not int8")
    module = sys.modules[_impl.imported("int8_linear", impl, device)]
    rows, weight = (x if x.stride(-1) == 1 else x.contiguous() for x in (rows, weight))
    out = module.int8_linear(rows, weight, scale.contiguous(), None if bias is None else bias.contiguous())
    return out.view(*hidden.shape[:-1], len(weight))
