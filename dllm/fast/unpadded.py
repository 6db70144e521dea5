"""Rows of unequal length as one long row, without padding: nothing is computed for columns that no row has.

Flash attention is told where each row ends (`cu_seq_lens`), and positions begin anew in each. Any other part of a model
works on tokens one by one. So this serves models that hand `position_ids` and `cu_seq_lens` to flash attention; whether
one does is found by running it on a few tokens.

The engine keeps its canvases as they are: only the body runs on the long row.
"""

from __future__ import annotations

import copy
import logging
import weakref

import torch
from torch import Tensor, nn

from dllm.fast.attention import attention_of, is_flash
from dllm.fast.cache import settings_of
from dllm.fast.deferred import undeferred
from dllm.fast.head import HeadTap

_log = logging.getLogger("dllm.fast")

_found: weakref.WeakKeyDictionary[nn.Module, tuple[tuple, str | None]] = weakref.WeakKeyDictionary()


def real_cells(attention_mask: Tensor) -> Tensor:
    """int64 [T], the cells of [B, L] that are no padding, in order, as flat indices. The host learns how many.

    Example:
        >>> real_cells(torch.tensor([[1, 1, 0], [1, 0, 0]])).tolist()
        [0, 1, 3]
    """
    return attention_mask.flatten().nonzero().flatten()


def run(tap: HeadTap, tokens: Tensor, attention_mask: Tensor | None, cells: Tensor | None) -> Tensor:
    """What the head would be given for all columns of some canvases.

    Args:
        tap: of the model.
        tokens: int64 [n B, L], n canvases of each of B rows.
        attention_mask: int64 [B, L], None when no row is padded.
        cells: int64 [T], the real ones of [B, L], to run as one row; None: canvases run as they are.

    Returns:
        [n B, L, H]; zeros in padding when cells are given.
    """
    rows, columns = tokens.shape
    mask = None if attention_mask is None else attention_mask.repeat(rows // len(attention_mask), 1)
    if cells is None:
        return tap.body(tokens, mask)
    size = attention_mask.numel()
    cells = torch.cat([cells + start for start in range(0, rows * columns, size)])
    hidden = _one_row(tap, tokens.flatten()[cells], cells % columns, mask.sum(1), columns)
    return hidden.new_zeros(rows * columns, hidden.shape[1]).index_copy(0, cells, hidden).view(rows, columns, -1)


def wanted(tap: HeadTap, *, padded: bool) -> tuple[bool, str]:
    """Whether rows run without their padding, and what to tell about it: under flash attention where rows are padded,
    if the model can do it."""
    if not padded or not is_flash(tap.model):
        return False, ""
    why = _why_not(tap)
    if why is None:
        return True, f"rows run without their padding under {attention_of(tap.model)}"
    _log.info("rows run with their padding, because %s", why)
    return False, f"rows run with their padding, because {why}"


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
