"""Transfer: each row of a batch commits its surest proposals into its canvas."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from dllm_kernels import _checks, _impl

MAX_WINDOW = 8192


def transfer_tokens(
    canvas: Tensor,
    proposals: Tensor,
    confidence: Tensor,
    *,
    mask_id: int,
    k: int | Tensor | None = None,
    threshold: float | None = None,
    factor: float | None = None,
    start: int | Tensor = 0,
    length: int | Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""Replace mask tokens by the surest proposals of each row, in place, for the whole batch at once.

    Row b looks at the window of W columns that begins at `start[b]`. Column start[b] + j is eligible when it lies in
    the canvas, j < length[b], the canvas holds `mask_id` there and proposals[b, j] >= 0. With the confidences of the n
    eligible columns sorted descending, c_1 >= ... >= c_n, one of three rules says how many are committed:

    - `k`: the min(k, n) surest;
    - `threshold` th: all with c >= th, and at least the surest;
    - `factor` f: the longest prefix with c_r >= 1 - f / (r + 1), and at least the surest (Fast-dLLM, arXiv:2505.22618;
      confidences are probabilities here).

    Ties go to the lowest column. NaN counts as -inf; an eligible column at -inf comes last but is committed when its
    turn comes. Nothing is read back to the host.

    Args:
        canvas: int64 [B, L], any stride between rows, adjacent columns; changed in place.
        proposals: int64 [B, W], proposed token ids; a negative one is never committed. Memory of its own.
        confidence: float32 [B, W], in the unit of `threshold`.
        mask_id: the mask token.
        k: integer or tensor, one for all or [B]; negative ones count as 0.
        threshold: number from -1e30 to 1e30, or infinite.
        factor: number above 0, at most 1e30.
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
    rules = {"k": k, "threshold": threshold, "factor": factor}
    given = [name for name, value in rules.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"expected exactly one of k, threshold and factor, got {', '.join(given) or 'none'}")
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
        k=None if k is None else per_row("k", k),
        threshold=threshold,
        factor=factor,
        start=per_row("start", start),
        length=per_row("length", window if length is None else length),
    )
