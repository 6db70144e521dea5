"""Rows of unequal length without padding: as one long row, or group by group.

As one long row nothing is computed for columns that no row has. Flash attention is told where each row ends
(`cu_seq_lens`), and positions begin anew in each. Any other part of a model works on tokens one by one. So this serves
models that hand `position_ids` and `cu_seq_lens` to flash attention; whether one does is found by running it on a few
tokens.

Group by group run those of a model that sees padding whatever it is told (:mod:`dllm.fast.trial`), rows of one length
at once; and each row by itself where rows of a batch see each other. So each row is what it is alone, at the price of
several forwards in a step.

The engine keeps its canvases as they are: only the body runs otherwise.
"""

from __future__ import annotations

import copy
import logging
import weakref
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm.fast import trial
from dllm.fast.attention import attention_of, is_flash
from dllm.fast.cache import settings_of
from dllm.fast.deferred import undeferred
from dllm.fast.head import HeadTap

_log = logging.getLogger("dllm.fast")

_found: weakref.WeakKeyDictionary[nn.Module, tuple[tuple, str | None]] = weakref.WeakKeyDictionary()
_told_of: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


def real_cells(attention_mask: Tensor) -> Tensor:
    """int64 [T], the cells of [B, L] that are no padding, in order, as flat indices. The host learns how many.

    Example:
        >>> real_cells(torch.tensor([[1, 1, 0], [1, 0, 0]])).tolist()
        [0, 1, 3]
    """
    return attention_mask.flatten().nonzero().flatten()


class Apart(NamedTuple):
    """How rows run that may not be padded, or not be run together: each with its own length, on the host, in forwards
    of rows of one length, or of one row.

    Example:
        >>> Apart((5, 3, 5), one_by_one=False).groups(copies=1)
        {5: [0, 2], 3: [1]}
    """

    lengths: tuple[int, ...]
    one_by_one: bool

    def groups(self, copies: int) -> dict[object, list[int]]:
        """What runs together, of so many canvases of each row, canvas after canvas."""
        found: dict[object, list[int]] = {}
        for number, length in enumerate(self.lengths * copies):
            found.setdefault(number if self.one_by_one else length, []).append(number)
        return found

    def rows(self, index: list[int]) -> Apart:
        """The same of some of the rows."""
        return Apart(tuple(self.lengths[row] for row in index), self.one_by_one)


def run(
    tap: HeadTap, tokens: Tensor, attention_mask: Tensor | None, cells: Tensor | None, apart: Apart | None = None
) -> Tensor:
    """What the head would be given for all columns of some canvases.

    Args:
        tap: of the model.
        tokens: int64 [n B, L], n canvases of each of B rows.
        attention_mask: int64 [B, L], None when no row is padded.
        cells: int64 [T], the real ones of [B, L], to run as one row; None: canvases run as they are.
        apart: of the B rows, to run group by group.

    Returns:
        [n B, L, H]; zeros in padding when cells are given, or rows run apart.
    """
    rows, columns = tokens.shape
    if apart is not None:
        return _by_groups(tap, tokens, apart)
    mask = None if attention_mask is None else attention_mask.repeat(rows // len(attention_mask), 1)
    if cells is None:
        return tap.body(tokens, mask)
    size = attention_mask.numel()
    cells = torch.cat([cells + start for start in range(0, rows * columns, size)])
    hidden = _one_row(tap, tokens.flatten()[cells], cells % columns, mask.sum(1), columns)
    return hidden.new_zeros(rows * columns, hidden.shape[1]).index_copy(0, cells, hidden).view(rows, columns, -1)


def arranged(tap: HeadTap, lengths: list[int], canvases: int, device: torch.device) -> tuple[bool, Apart | None, str]:
    """How rows run: whether as one long row, or how apart, and what to tell about it. Where rows are padded under flash
    attention they run as one, if the model can do it; where neither that nor padding is right they run apart.

    Args:
        tap: of the model.
        lengths: of the rows.
        canvases: of each row.
        device: of the tokens.
    """
    if len(lengths) * canvases > 1 and (why := trial.why_rows_run_alone(tap.model, device)):
        note = _told(tap, f"rows run one at a time, because {why}")
        return False, Apart(tuple(lengths), one_by_one=True), note
    if len(set(lengths)) < 2:
        return False, None, ""
    as_one, note = wanted(tap)
    if not as_one and (why := trial.why_not_padded(tap.model, device)):
        note = _told(tap, f"only rows of one length run together, because {why}")
        return False, Apart(tuple(lengths), one_by_one=False), note
    return as_one, None, note


def wanted(tap: HeadTap) -> tuple[bool, str]:
    """Whether rows run as one, without their padding, and what to tell about it: under flash attention, if the model
    can do it."""
    if not is_flash(tap.model):
        return False, ""
    why = _why_not(tap)
    if why is None:
        return True, f"rows run without their padding under {attention_of(tap.model)}"
    _log.info("rows run with their padding, because %s", why)
    return False, f"rows run with their padding, because {why}"


def _told(tap: HeadTap, note: str) -> str:
    """The note, logged the first time that it is made of a model."""
    told = _told_of.setdefault(tap.model, set())
    if note not in told:
        told.add(note)
        _log.warning("%s", note)
    return note


def _by_groups(tap: HeadTap, tokens: Tensor, apart: Apart) -> Tensor:
    """Output [n B, L, H] for tokens [n B, L] of rows that run apart."""
    copies, said = len(tokens) // len(apart.lengths), None
    for rows in apart.groups(copies).values():
        length, row = apart.lengths[rows[0] % len(apart.lengths)], torch.tensor(rows, device=tokens.device)
        if length == 0:
            continue
        hidden = tap.body(tokens[row, :length], None)
        if said is None:
            said = hidden.new_zeros(*tokens.shape, hidden.shape[-1])
        said[row, :length] = hidden
    return said


def _one_row(tap: HeadTap, tokens: Tensor, position: Tensor, lengths: Tensor, longest: int) -> Tensor:
    """Output [T, H] for rows behind each other: tokens [T], their positions [T] in their own rows, and lengths [B]."""
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    row_ends = dict(cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q=longest, max_length_k=longest)
    return tap.body(tokens[None], None, position_ids=position[None], **row_ends)[0]


def _why_not(tap: HeadTap) -> str | None:
    """Why a model cannot run rows behind each other, None where it can: found once per model and its settings."""
    model = getattr(tap.model, "_orig_mod", tap.model)
    state = settings_of(model)
    known = _found.get(model)
    if known is not None and known[0] == state:
        return known[1]
    eager = copy.copy(tap)
    eager.model = model  # what torch.compile made of it need not compile for this
    with undeferred(), torch.no_grad():
        why, meaningful = _inspect(eager)
    if meaningful:
        _found[model] = (state, why)
    return why


def _inspect(tap: HeadTap) -> tuple[str | None, bool]:
    """Why not, and whether it can be relied on: of a model that says NaN nothing is known.

    Rows 0 1 2 and 3 1: what is said of the second, bit by bit, must not depend on the first, and must depend on its own
    positions, which must begin where the model itself lets them begin.
    """
    name, device = type(tap.model).__name__, next(tap.model.parameters()).device
    lengths = torch.tensor([3, 2], device=device)

    def second(*tokens: int, position: tuple[int, ...] = (0, 1, 2, 0, 1)) -> Tensor:
        given = torch.tensor(tokens, device=device), torch.tensor(position, device=device)
        return _one_row(tap, *given, lengths, 3)[3:]

    try:
        said = second(0, 1, 2, 3, 1)
        if not bool(said.isfinite().all()):
            return f"{name} says nothing finite", False
        alone = torch.tensor([[3, 1]], device=device)
        numbered = tap.body(alone, None, position_ids=torch.tensor([[0, 1]], device=device))
        if not torch.equal(tap.body(alone, None), numbered):
            return f"the positions of {name} do not begin at 0", True
        if not torch.equal(said, second(0, 1, 3, 3, 1)):
            return f"rows behind each other see each other in {name}", True
        if torch.equal(said, second(0, 1, 2, 3, 1, position=(0, 1, 2, 0, 2))):  # a distance: some models mind no other
            return f"{name} does not heed position_ids", True
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        return f"{name} takes no rows behind each other: {str(error).strip().partition(chr(10))[0]}", True
    return None, True
