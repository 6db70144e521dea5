"""Top-k and top-p without a sort: the smallest logit of each row that they keep."""

from __future__ import annotations

import importlib
from numbers import Real

import torch
from torch import Tensor

from dllm_kernels import _checks, _impl


def truncation_floor(
    logits: Tensor,
    *,
    temperature: float | Tensor = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    suppress: Tensor | None = None,
    rows: Tensor | None = None,
    count: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""The smallest logit of each row that top-k and top-p keep: what is below it is cut off, what ties with it is not.

    .. math::
        p = softmax(l / T), \qquad
        v \text{ is kept} \iff \sum_{u: l_u > l_v} p_u \le top\_p \text{ and } \#\{u: l_u > l_v\} < top\_k

    So the likeliest token always stays and the order of equal logits does not matter. Nothing is sorted: the floor is
    found by passes over the row that each count what lies above a few candidates. NaN counts as -inf and +inf as the
    largest finite float32. Masses are float32 sums in a fixed order, so a row's floor does not depend on its batch;
    where a mass is within float32 rounding of `top_p` the floor may differ between implementations by one candidate.
    Nothing is read back to the host.

    Args:
        logits: [R, V], float32, bfloat16 or float16; rows may have any stride, a row's tokens are adjacent.
        temperature: number or tensor, one for all or [R]: T of `top_p`. 1 stands for what is not above 0; what is
            beyond 1e-30 and 1e30 counts as 1e-30 or 1e30.
        top_k: at least 1; None, or V and more, keeps all.
        top_p: above 0 and at most 1; None, or what float32 rounds to 1, keeps all.
        suppress: bool [V], true where a logit counts as -inf.
        rows: int64 [N], the rows to look at, in this order.
        count: one-element integer tensor on the device: only the first `count` of the chosen rows are read.
        impl: "auto", "reference", "triton" or "cpu"; an explicit one never falls back.

    Returns:
        float32 [N], or [R] without `rows`: a logit of the row; -inf where all are kept because neither option is on,
        where a row has no finite logit, is outside [0, R) or left out by `count`.

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has run.
        RuntimeError: the implementation asked for is not available.

    Source: nucleus sampling, arXiv:1904.09751; the filters of Dream's `sample_tokens`, which cut the same for logits
    without ties.

    Example:
        >>> logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
        >>> truncation_floor(logits, top_k=2), truncation_floor(logits, top_p=0.6)
        (tensor([2.]), tensor([3.]))
    """
    _checks.logits(logits)
    device, (n_rows, vocab_size) = logits.device, logits.shape
    if isinstance(temperature, Tensor) or temperature != 0:
        if not isinstance(temperature, Tensor):
            temperature = _checks.finite_at_least_zero("temperature", temperature)
        temperature = _checks.per_row("temperature", temperature, n_rows, torch.float32, device)
    else:
        temperature = None
    top_k, top_p = cuts(top_k, top_p, vocab_size)
    if suppress is not None:
        _checks.tensor("suppress", suppress, dtypes=(torch.bool,), shape=(vocab_size,), device=device)
    if rows is not None:
        _checks.tensor("rows", rows, dtypes=(torch.int64,), shape=("N",), device=device)
    if count is not None:
        count = _checks.per_row("count", count, 1, torch.int64, device)
    module = importlib.import_module(f"dllm_kernels.truncation_floor.{_impl.choose(impl, device)}")
    return module.truncation_floor(
        logits, temperature=temperature, top_k=top_k, top_p=top_p, suppress=suppress, rows=rows, count=count
    )


def cuts(top_k: object, top_p: object, vocab_size: int) -> tuple[int | None, float | None]:
    """top_k and top_p, checked; None where an option is off.

    Example:
        >>> cuts(50, 1.0, 30522)
        (50, None)
    """
    if top_k is not None:
        top_k = _checks.int64("top_k", top_k)
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1 (None keeps all tokens), got {top_k}")
        top_k = top_k if top_k < vocab_size else None
    if top_p is not None:
        if isinstance(top_p, bool) or not isinstance(top_p, Real):
            raise TypeError(f"top_p must be a number, got {type(top_p).__name__}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
        top_p = float(top_p) if top_p < 1 - 2**-25 else None
    return top_k, top_p
