"""Canvases that are filled block by block, each row by its own schedule: which cells a step may fill, and what follows.

A step of a batch is :func:`list_candidates`, the sampling of a token for each candidate, :func:`place_proposals`,
:func:`dllm_kernels.transfer_tokens` and :func:`advance_rows`. Nothing is read back to the host.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor

from dllm_kernels import _checks, _impl
from dllm_kernels.block_schedule.tables import BlockSchedule, Candidates
from dllm_kernels.transfer_tokens.api import MAX_WINDOW


def list_candidates(
    tokens: Tensor,
    schedule: BlockSchedule,
    seeds: Tensor,
    *,
    mask_id: int,
    start: Tensor,
    overflow: Tensor,
    window: int,
    hidden_offset: Tensor,
    hidden_rows: int,
    right_shift: bool = False,
    block_only: bool = False,
    editable: Tensor | None = None,
    temperature: Tensor | None = None,
    room: int | None = None,
    multiple: int = 1,
    impl: str = "auto",
) -> Candidates:
    """List the cells that a step may fill, of all rows.

    The window of a row has W columns and ends where its block does; start[b] = max(stop - W, 0). A cell of the window
    is a candidate if it holds `mask_id` and lies left of the block's end or, with `block_only`, in the block. Cells of
    the block that are `editable` are candidates whatever they hold. Finished rows have none.

    How many cells are masked does not follow from a schedule: a model may choose the mask token itself, and such a cell
    stays masked. Where their number is not to be read from a device, the list gets `room` places, and cells that do not
    fit wait for a later step.

    Args:
        tokens: int64 [B, L], the canvas.
        schedule: of the rows; not changed.
        seeds: int64 [B].
        mask_id: the mask token.
        start: int64 [B]; gets the first column of each window.
        overflow: int64 [1]; the number of cells that do not fit is added.
        window: W, at most 8192 and L.
        hidden_offset: int64 [B]; column c of row b has the hidden state hidden_offset[b] + c.
        hidden_rows: how many hidden states there are; indices are kept below.
        right_shift: the logits of a column are read one column before; those of the first in its own place.
        block_only: masks left of the block stay.
        editable: bool [B, L], cells that may be filled again while their block lasts.
        temperature: float32 [B], of each row, listed beside its seed; None: rows have none of their own.
        room: places of the list; None: as many as there are cells, which waits for the device of `tokens`.
        multiple: N is rounded up to a multiple of this, and at least that.
        impl: "auto", "reference", "triton" or "cpu"; an explicit one never falls back.

    Returns:
        :class:`Candidates`.

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has run.
        RuntimeError: the implementation asked for is not available.

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.int64)
        >>> schedule = BlockSchedule(one[0] * 0, one[0] * 0, one[0], one * 2, one * 4, one, one[None])
        >>> cells = list_candidates(
        ...     torch.tensor([[5, 9, 7, 9]]), schedule, torch.tensor([3]), mask_id=9, start=one[0].clone(),
        ...     overflow=one[0] * 0, window=4, hidden_offset=torch.tensor([0]), hidden_rows=4,
        ... )
        >>> cells.position, cells.slot
        (tensor([1, 3]), tensor([[-1,  0, -1,  1]]))
    """
    batch, columns = _check("tokens", tokens, ("B", "L")).shape
    _check_schedule(schedule, batch, tokens.device)
    for name, value in (("seeds", seeds), ("start", start), ("hidden_offset", hidden_offset)):
        _check(name, value, (batch,), tokens.device)
    _check("overflow", overflow, (1,), tokens.device)
    if editable is not None:
        _check("editable", editable, (batch, columns), tokens.device, torch.bool)
    if temperature is not None:
        _check("temperature", temperature, (batch,), tokens.device, torch.float32)
    _check_window(window, columns)
    for name, value in (("hidden_rows", hidden_rows), ("multiple", multiple), ("room", 1 if room is None else room)):
        if _checks.int64(name, value) < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    return _module(impl, tokens).list_candidates(
        tokens,
        schedule,
        seeds,
        mask_id=_checks.int64("mask_id", mask_id),
        start=start,
        overflow=overflow,
        window=window,
        hidden_offset=hidden_offset,
        hidden_rows=hidden_rows,
        right_shift=right_shift,
        block_only=block_only,
        editable=editable,
        temperature=temperature,
        room=room,
        multiple=multiple,
    )


def place_proposals(
    candidates: Candidates,
    token: Tensor,
    rank: Tensor,
    uniform: Tensor | None,
    schedule: BlockSchedule,
    *,
    proposals: Tensor,
    confidence: Tensor,
    row_steps: Tensor,
    failed: Tensor,
    impl: str = "auto",
) -> Tensor:
    """Put the candidates' sampled tokens into their windows, and say how many of them each row commits.

    A row commits the amount of its step: the last one's, if its block has taken all of them. With `uniform` the amount
    is a probability, and the row commits as many tokens as it has candidates whose number lies below it.

    Args:
        candidates: of :func:`list_candidates`.
        token: int64 [N], what was sampled for each; negative: no logit was finite.
        rank: float32 [N], what orders them.
        uniform: float32 [N], numbers in [0, 1), with amounts of float32; None with amounts of int64.
        schedule: of the rows; not changed.
        proposals: int64 [B, W]; gets the tokens, and -1 elsewhere.
        confidence: float32 [B, W]; gets the ranks, and -inf elsewhere.
        row_steps: int64 [B], steps that each row has taken before this one.
        failed: int64 [B]; a negative number becomes row_steps[b] where a candidate's token is negative.
        impl: as in :func:`list_candidates`.

    Returns:
        int64 [B], the k of :func:`dllm_kernels.transfer_tokens`.

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has run.
        RuntimeError: the implementation asked for is not available.

    Example:
        >>> one, two = torch.ones(1, 1, dtype=torch.int64), torch.full((1, 2), -1)
        >>> schedule = BlockSchedule(one[0] * 0, one[0] * 0, one[0], one * 0, one * 2, one, one[None])
        >>> cells = Candidates(*[one[0]] * 5, slot=torch.tensor([[-1, 0]]))
        >>> place_proposals(
        ...     cells, torch.tensor([7]), torch.tensor([0.5]), None, schedule, proposals=two,
        ...     confidence=torch.zeros(1, 2), row_steps=one[0], failed=one[0] - 2,
        ... )
        tensor([1])
        >>> two
        tensor([[-1,  7]])
    """
    device, (batch, window), places = proposals.device, proposals.shape, len(token)
    _check("slot", candidates.slot, (batch, window), device)
    _check("proposals", proposals, (batch, window), device)
    _check("confidence", confidence, (batch, window), device, torch.float32)
    _check_schedule(schedule, batch, device)
    for name, value in (("row_steps", row_steps), ("failed", failed)):
        _check(name, value, (batch,), device)
    _check("token", token, (places,), device)
    _check("rank", rank, (places,), device, torch.float32)
    if uniform is not None:
        _check("uniform", uniform, (places,), device, torch.float32)
    amount = torch.int64 if uniform is None else torch.float32
    _check("amount", schedule.amount, (batch, schedule.stop.shape[1], "S"), device, amount)
    return _module(impl, proposals).place_proposals(
        candidates.slot,
        token,
        rank,
        uniform,
        schedule,
        proposals=proposals,
        confidence=confidence,
        row_steps=row_steps,
        failed=failed,
    )


def advance_rows(
    tokens: Tensor,
    schedule: BlockSchedule,
    proposals: Tensor,
    confidence: Tensor,
    committed: Tensor,
    *,
    mask_id: int,
    first: Tensor,
    row_steps: Tensor,
    unmasked_steps: Tensor,
    adapts: bool = False,
    block_only: bool = False,
    edit_threshold: float | None = None,
    edit_steps: int = 0,
    eos_id: int | None = None,
    eot_id: int | None = None,
    stops_between_blocks: bool = False,
    impl: str = "auto",
) -> None:
    """Move each row on after a transfer, in place: to its next step, its next block, or its end. Finished rows stay.

    A block is over after its last step; with `adapts`, as soon as it has no mask. With an `edit_threshold`, tokens that
    stood in the block before the step are replaced by proposals of a higher confidence, never by `mask_id`. Then a
    block is over when a step has found no mask and replaced nothing, after `edit_steps` steps that found no mask, or
    when masks are left before the last `edit_steps` steps. A row is finished after its last block, or once its
    generated part holds an EOS or an end of turn with no mask before it.

    Args:
        tokens: int64 [B, L], the canvas after the transfer.
        schedule: of the rows; `block` and `step` are changed.
        proposals, confidence: [B, W], of :func:`place_proposals`.
        committed: int64 [B], what the transfer returned.
        mask_id: the mask token.
        first: int64 [B], the first generated column.
        row_steps: int64 [B], counts the steps of each row.
        unmasked_steps: int64 [B], counts those of the current block that began without a mask.
        adapts: see above.
        block_only: as in :func:`list_candidates`.
        edit_threshold, edit_steps: see above; None: nothing is replaced.
        eos_id, eot_id: end of text and end of turn; None: there is none. An `eot_id` needs an `eos_id`.
        stops_between_blocks: a row is finished no earlier than its block is over.
        impl: as in :func:`list_candidates`.

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has run.
        RuntimeError: the implementation asked for is not available.

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.int64)
        >>> schedule = BlockSchedule(one[0] * 0, one[0] * 0, one[0] * 2, one * 0, one * 2, one, one[None])
        >>> proposed = torch.tensor([[3, 4]]), torch.tensor([[0.5, 0.5]])
        >>> counts = dict(row_steps=one[0] * 0, unmasked_steps=one[0] * 0)
        >>> advance_rows(torch.tensor([[3, 4]]), schedule, *proposed, one[0], mask_id=9, first=one[0] * 0, **counts)
        >>> schedule.block, schedule.step
        (tensor([1]), tensor([0]))
    """
    batch, columns = _check("tokens", tokens, ("B", "L")).shape
    _check_schedule(schedule, batch, tokens.device)
    for name, value in (
        ("committed", committed),
        ("first", first),
        ("row_steps", row_steps),
        ("unmasked_steps", unmasked_steps),
    ):
        _check(name, value, (batch,), tokens.device)
    _check("proposals", proposals, (batch, "W"), tokens.device)
    _check("confidence", confidence, tuple(proposals.shape), tokens.device, torch.float32)
    _check_window(proposals.shape[1], columns)
    if eot_id is not None and eos_id is None:
        raise ValueError(f"eot_id needs an eos_id, got eot_id {eot_id} alone")
    ends = None if eos_id is None else (eos_id, eos_id if eot_id is None else eot_id)
    _module(impl, tokens).advance_rows(
        tokens,
        schedule,
        proposals,
        confidence,
        committed,
        mask_id=_checks.int64("mask_id", mask_id),
        first=first,
        row_steps=row_steps,
        unmasked_steps=unmasked_steps,
        adapts=adapts,
        block_only=block_only,
        edit_threshold=None if edit_threshold is None else _checks.number("edit_threshold", edit_threshold),
        edit_steps=_checks.int64("edit_steps", edit_steps),
        ends=None if ends is None else (_checks.int64("eos_id", ends[0]), _checks.int64("eot_id", ends[1])),
        stops_between_blocks=stops_between_blocks,
    )


def _check_schedule(schedule: BlockSchedule, rows: int, device: torch.device) -> None:
    """Check the tables and where the rows are in them, all but the amounts."""
    for name in ("block", "step", "blocks"):
        _check(name, getattr(schedule, name), (rows,), device)
    blocks = _check("begin", schedule.begin, (rows, "N"), device).shape[1]
    for name in ("stop", "steps"):
        _check(name, getattr(schedule, name), (rows, blocks), device)
    if rows == 0 or blocks == 0:
        raise ValueError(f"there must be at least one row and one block, got tables {list(schedule.begin.shape)}")


def _check_window(window: int, columns: int) -> None:
    if not 0 < window <= min(MAX_WINDOW, columns):
        raise ValueError(f"a window must have from 1 to {min(MAX_WINDOW, columns)} columns, got {window}")


def _check(
    name: str,
    value: Tensor,
    shape: tuple[int | str, ...],
    device: torch.device | None = None,
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    """Check one tensor, which must be contiguous. There are dozens in a step: what is right is seen at once."""
    right = isinstance(value, Tensor) and value.dtype == dtype and value.shape == shape and value.device == device
    if right and value.is_contiguous():
        return value
    _checks.tensor(name, value, dtypes=(dtype,), shape=shape, device=device)
    if not value.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {value.stride()} of {list(value.shape)}")
    return value


def _module(impl: str, tensor: Tensor) -> ModuleType:
    return importlib.import_module(f"dllm_kernels.block_schedule.{_impl.choose(impl, tensor.device)}")
