"""transfer_tokens: each row of a batch commits its proposals of highest confidence into its canvas."""

from __future__ import annotations

import importlib
import math

import torch
from torch import Tensor

from dllm_kernels import _checks, _impl

MAX_WINDOW = 8192
# Costs are counted in units of 2^-32 nat. Capped at 2^16 nats, those of the widest window sum to 2^61.
COST_UNIT, COST_CAP = 2.0**-32, 2.0**16


def transfer_tokens(
    canvas: Tensor,
    proposals: Tensor,
    confidence: Tensor,
    *,
    mask_id: int,
    k: int | Tensor | None = None,
    threshold: float | None = None,
    factor: float | None = None,
    budget: float | None = None,
    start: int | Tensor = 0,
    length: int | Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""Replace mask tokens by each row's proposals of highest confidence, in place, for the whole batch at once.

    Row b looks at the window of W columns that begins at `start[b]`. Column start[b] + j is eligible when it lies in
    the canvas, j < length[b], the canvas holds `mask_id` there and proposals[b, j] >= 0. With the confidences of the n
    eligible columns sorted descending, c_1 >= ... >= c_n, the first min(k, n) are committed, or more, if one of these
    rules allows more (a rule may allow none; then k applies):

    - `threshold` th: all with c >= th;
    - `factor` f: the longest prefix with c_r >= 1 - f / (r + 1) (Fast-dLLM, arXiv:2505.22618; confidences are
      probabilities here);
    - `budget` gamma: the longest prefix with cost_1 + ... + cost_{r-1} <= gamma, where cost = max(-c, 0): with negative
      entropies as confidences, the entropy-bounded sampler (arXiv:2505.24857). Rank 1, with nothing before it, is in.

    A rule given without k has a k of 1: at least the surest. LLaDA 2.0 gives both, a threshold and the k of its
    schedule. Ties go to the lowest column. NaN counts as -inf; an eligible column at -inf comes last but is committed
    when its turn comes. Nothing is read back to the host.

    Costs and budget are cut to whole units of 2^-32 nat and summed as integers, so that the sum has no order. Of the
    exact rule's prefix nothing is lost; a rank is let in besides if the exact sum before it exceeds gamma by less than
    (r - 1) 2^-32.

    Args:
        canvas: int64 [B, L], any stride between rows, adjacent columns; changed in place.
        proposals: int64 [B, W], proposed token ids; a negative one is never committed. Memory of its own.
        confidence: float32 [B, W], in the unit of `threshold`.
        mask_id: the mask token.
        k: integer or tensor, one for all or [B]; negative ones count as 0. None: 1, beside a rule.
        threshold: number from -1e30 to 1e30, or infinite.
        factor: number above 0, at most 1e30.
        budget: number from 0 to below 65536 (nats, for entropies), or infinite.
        start: integer or tensor, one for all or [B]: first column of the window. Columns outside the canvas are never
            eligible.
        length: integer or tensor, one for all or [B]: columns of the window in use; None means W.
        impl: "auto", "reference", "triton" or "cpu"; an explicit one never falls back.

    Returns:
        int64 [B], the number of tokens committed in each row.

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has run, the canvas is unchanged.
        RuntimeError: the implementation asked for is not available.

    Source: the transfer step of the model-card loops of LLaDA (arXiv:2502.09992) and BERT-chat.

    Example:
        >>> canvas = torch.tensor([[5, 9, 9, 9]])
        >>> transfer_tokens(canvas, torch.tensor([[1, 2, 3]]), torch.tensor([[0.2, 0.9, 0.9]]), mask_id=9, k=1, start=1)
        tensor([1])
        >>> canvas
        tensor([[5, 9, 2, 9]])
    """
    _checks.tensor("canvas", canvas, dtypes=(torch.int64,), shape=("B", "L"))
    device, (batch, columns) = canvas.device, canvas.shape
    if canvas.stride(1) != 1 and columns > 1:
        raise ValueError(f"canvas must have adjacent columns (stride 1 in the last dimension), got {canvas.stride()}")
    if batch > 1 and canvas.stride(0) < columns:
        raise ValueError(f"canvas rows must not overlap, got stride {canvas.stride(0)} for {columns} columns")
    _checks.tensor("proposals", proposals, dtypes=(torch.int64,), shape=(batch, "W"), device=device)
    window = proposals.shape[1]
    _checks.tensor("confidence", confidence, dtypes=(torch.float32,), shape=(batch, window), device=device)
    if window > MAX_WINDOW:
        raise ValueError(f"a window must have at most {MAX_WINDOW} columns, got {window}")
    mask_id = _checks.int64("mask_id", mask_id)
    rules = {"threshold": threshold, "factor": factor, "budget": budget}
    given = [name for name, value in rules.items() if value is not None]
    if len(given) > 1 or (k is None and not given):
        expected = "k, one of threshold, factor and budget, or k with one of them"
        raise ValueError(f"expected {expected}, got {', '.join(given) or 'none'}")
    if threshold is not None:
        threshold = _checks.number("threshold", threshold)
    if factor is not None and not _checks.finite_at_least_zero("factor", factor) > 0:
        raise ValueError(f"factor must be finite and above 0, got {factor}")

    def per_row(name: str, value: int | Tensor) -> Tensor:
        return _checks.per_row(name, value, batch, torch.int64, device)

    module = importlib.import_module(f"dllm_kernels.transfer_tokens.{_impl.choose(impl, device)}")
    return module.transfer_tokens(
        canvas,
        proposals,
        confidence,
        mask_id=mask_id,
        k=per_row("k", 1 if k is None else k),
        threshold=threshold,
        factor=factor,
        budget=None if budget is None else _cost_units(budget),
        start=per_row("start", start),
        length=per_row("length", window if length is None else length),
    )


def _cost_units(budget: object) -> int:
    """The budget in whole units of COST_UNIT; an infinite one is more than any sum."""
    if _checks.number("budget", budget) == math.inf:
        return 2**62
    if not 0 <= budget < COST_CAP:
        raise ValueError(f"budget must be infinite or from 0 to below {COST_CAP:.0f}, got {budget}")
    return int(float(budget) / COST_UNIT)
