"""The head and the sampling of its logits in eager PyTorch: the specification. Formulae: `api.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels._linear import by_blocks
from dllm_kernels.gumbel_argmax.reference import gumbel_argmax
from dllm_kernels.logits import softcapped
from dllm_kernels.truncation_floor.reference import truncation_floor


def linear_gumbel_argmax(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    unconditional: Tensor | None = None,
    cfg_scale: float = 0.0,
    rows: Tensor | None = None,
    count: Tensor | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: Tensor | None = None,
    suppress: Tensor | None = None,
    softcap: float | None = None,
    **options: Tensor | bool | None,
) -> tuple[Tensor, ...]:
    """token, log_prob, margin, neg_entropy, lse, argmax; arguments as in the public function, already checked.

    Products are float32 whatever the dtype, and float64 of float64: that is the truth of the tests. They are of blocks
    of rows, so that a row's bits do not depend on how many rows there are. Under a softcap they are rounded to the
    dtype first, as a library's are.

    Example:
        >>> head = torch.eye(3, 2, dtype=torch.float64)
        >>> linear_gumbel_argmax(torch.tensor([[0.0, 1.0]], dtype=torch.float64), head)[0]
        tensor([1])
    """
    if unconditional is not None:
        real = real_dtype(hidden)
        hidden = ((cfg_scale + 1) * hidden.to(real) - cfg_scale * unconditional.to(real)).to(hidden.dtype)
    logits = head_logits(hidden, weight, bias, softcap, rows)
    floor = None
    if top_k is not None or top_p is not None:
        floor = truncation_floor(logits, temperature, top_k, top_p, suppress)
    return gumbel_argmax(logits, temperature, suppress=suppress, count=count, floor=floor, **options)


def head_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, rows: Tensor | None
) -> Tensor:
    """Logits [R, V] of the chosen rows, -inf of one that is out of range; under a softcap rounded before it."""
    real = real_dtype(hidden)
    w, b = weight.to(real), None if bias is None else bias.to(real)
    logits = by_blocks(lambda rows: F.linear(rows, w, b), hidden.to(real))
    if softcap is not None:
        logits = softcapped(logits.to(hidden.dtype).to(real), softcap)
    if rows is not None:
        nothing = logits.new_full((1, len(weight)), -torch.inf)
        inside = (rows >= 0) & (rows < len(hidden))
        logits = torch.cat([logits, nothing])[torch.where(inside, rows, len(hidden))]
    return logits


def real_dtype(x: Tensor) -> torch.dtype:
    """What is computed in: float32, or float64 of float64."""
    return x.dtype if x.dtype == torch.float64 else torch.float32
