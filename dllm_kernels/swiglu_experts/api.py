"""The chosen experts of a mixture, each a gated layer (SwiGLU), weighted and added up, for CPUs."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from dllm_kernels import _checks, _impl
from dllm_kernels.int8 import MOST_COLUMNS


def swiglu_experts(
    hidden: Tensor,
    gate_up: Tensor,
    down: Tensor,
    index: Tensor,
    weights: Tensor,
    *,
    gate_up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""The weighted sum of the experts that a router has chosen for each token.

    .. math::
        y_t = \sum_j w_{tj}\, D_{e} \left(\mathrm{silu}(G_e h_t) \odot U_e h_t\right), \qquad e = i_{tj}

    G_e and U_e are the upper and the lower half of `gate_up[e]`. Products are rounded to the dtype of the hidden
    states, silu and its product once more; the last sum is float32, in the order of j. Experts that no token has chosen
    are not read. On a CPU a token has the same bits in every batch, with any number of threads.

    Experts of 8 bits, weights of int8 with their scales, have the products of :func:`int8_linear`: h is quantised
    before the products with G and U, which stay float32, and what they make before the product with D, which is rounded
    to the dtype of the hidden states. It is approximate: a result is off by about 2 % of its typical size.

    Memory beyond arguments and result: T k (H + I) numbers, of which T k I are float32 beside weights of 8 bits, and
    for each thread the hidden states of up to 256 pairs (and a copy of them in 8 bits).

    Args:
        hidden: h, [T, H], float32, bfloat16 or float16.
        gate_up: G and U, [E, 2 I, H], of the same dtype; or int8, from -127 to 127.
        down: D, [E, H, I], of the dtype of `gate_up`.
        index: i, int64 [T, k], from 0 to E - 1; an expert may be named twice.
        weights: w, [T, k], float32, bfloat16 or float16.
        gate_up_scale, down_scale: float32 [E, 2 I] and [E, H], of every expert's
            :func:`dllm_kernels.int8.quantize_rows`, for weights of int8 and only for them.
        impl: "auto", "reference" or "cpu"; an explicit one never falls back. There is none for GPUs, which
            torch.nn.functional.grouped_mm serves.

    Returns:
        y, [T, H], of the dtype of `hidden`. No gradients.

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has run.
        RuntimeError: an argument needs a gradient, or the implementation asked for is not available.

    Source: Shazeer, "GLU variants improve Transformer" (arXiv:2002.05202); stored as transformers 5 stores experts.

    Example:
        >>> h, gate_up, down = torch.ones(1, 2), torch.ones(3, 4, 2), torch.ones(3, 2, 2)
        >>> swiglu_experts(h, gate_up, down, torch.tensor([[0, 2]]), torch.tensor([[0.5, 0.25]]))
        tensor([[5.2848, 5.2848]])
    """
    _checks.tensor("hidden", hidden, dtypes=_checks.LOGIT_DTYPES, shape=("T", "H"))
    tokens, width = hidden.shape
    quantized = gate_up_scale is not None or down_scale is not None
    if not quantized and isinstance(gate_up, Tensor) and gate_up.dtype == torch.int8:
        raise ValueError("weights of int8 need gate_up_scale and down_scale: float32, one for each row of an expert")
    same = dict(dtypes=(torch.int8,) if quantized else (hidden.dtype,), device=hidden.device)
    _checks.tensor("down", down, shape=("E", width, "I"), **same)
    experts, _, inner = down.shape
    _checks.tensor("gate_up", gate_up, shape=(experts, 2 * inner, width), **same)
    if quantized:
        of_scales = dict(dtypes=(torch.float32,), device=hidden.device)
        _checks.tensor("gate_up_scale", gate_up_scale, shape=(experts, 2 * inner), **of_scales)
        _checks.tensor("down_scale", down_scale, shape=(experts, width), **of_scales)
    _checks.tensor("index", index, dtypes=(torch.int64,), shape=(tokens, "k"), device=hidden.device)
    _checks.tensor(
        "weights", weights, dtypes=_checks.LOGIT_DTYPES, shape=(tokens, index.shape[1]), device=hidden.device
    )
    if width == 0 or inner == 0:
        raise ValueError(f"H and I must be at least 1, got {width} and {inner}")
    if quantized and max(width, inner) > MOST_COLUMNS:
        raise ValueError(f"H and I must be at most {MOST_COLUMNS} beside int8, got {width} and {inner}")
    named = index.reshape(-1)
    _checks.every_row("index", named, (named >= 0) & (named < experts), f"from 0 to {experts - 1}")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (hidden, gate_up, down, weights)):
        raise RuntimeError("swiglu_experts has no gradient, and its arguments need one: grouped_mm has")
    if impl == "triton":
        raise ValueError("impl='triton' does not exist for swiglu_experts: PyTorch's grouped_mm serves GPUs")
    name = "reference" if impl == "auto" and hidden.device.type != "cpu" else impl
    module = sys.modules[_impl.imported("swiglu_experts", name, hidden.device)]
    return module.swiglu_experts(hidden, gate_up, down, index, weights.float(), gate_up_scale, down_scale)
