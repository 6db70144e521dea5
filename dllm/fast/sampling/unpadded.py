"""Run rows of unequal length without padding: packed into one long row, or in groups.

Packed: nothing is computed for padding. Attention is told where each row ends (`cu_seq_lens`), and positions start
anew in each row. All other parts of a model work on each token by itself. This needs flash attention, or "packed_sdpa"
on a CPU, and a model that passes `position_ids` and `cu_seq_lens` to it; whether it does is found by running it on a
few tokens. Under "packed_sdpa" rows of one length, and single ones, run packed too: so a row has the same bits in any
company.

In groups: where a model sees padding whatever its mask says (:mod:`dllm.fast.visibility`), rows of one length run
together; where rows of a batch see each other, each runs alone. So each row gets the tokens that it gets alone, at the
price of several forwards in a step.

The canvases stay as they are: only the body runs in another way.
"""

from __future__ import annotations

import copy
import logging
import weakref
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm.fast import visibility
from dllm.fast.attention import attention_of, full_mask, is_flash, is_packed, window_of
from dllm.fast.deferred import no_deferral
from dllm.fast.head.split import SplitModel
from dllm.fast.head.use import run_settings

# A CPU runs so many packed tokens or a multiple. With fewer than 12 tokens the last ones, if they are no 4, get other
# bits from the library's float32 products.
TOKENS_MULTIPLE = 8

_log = logging.getLogger("dllm.fast")

_verdicts: weakref.WeakKeyDictionary[nn.Module, tuple[tuple, str | None]] = weakref.WeakKeyDictionary()
_logged: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


def real_cells(attention_mask: Tensor) -> Tensor:
    """Flat indices int64 [T] of the cells of [B, L] that are no padding, in order. Waits for the device.

    Example:
        >>> real_cells(torch.tensor([[1, 1, 0], [1, 0, 0]])).tolist()
        [0, 1, 3]
    """
    return attention_mask.flatten().nonzero().flatten()


def cells_of(tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The real cells of canvases [B, L]: all of them where there is no mask. Waits for the device."""
    return real_cells(torch.ones_like(tokens) if attention_mask is None else attention_mask)


class RowGroups(NamedTuple):
    """Groups of rows that run in one forward: rows of one width, or single rows.

    widths: how many columns of each row run; its length, unless rows are padded.
    one_by_one: each row runs alone.
    padded: some columns of each row may be padding, which a mask hides.

    Example:
        >>> RowGroups((5, 3, 5), one_by_one=False).groups(copies=1)
        {5: [0, 2], 3: [1]}
    """

    widths: tuple[int, ...]
    one_by_one: bool
    padded: bool = False

    def groups(self, copies: int) -> dict[object, list[int]]:
        """Row numbers by group, for `copies` canvases of each row, all rows of the first canvas first."""
        found: dict[object, list[int]] = {}
        for number, width in enumerate(self.widths * copies):
            found.setdefault(number if self.one_by_one else width, []).append(number)
        return found

    def rows(self, index: list[int]) -> RowGroups:
        """The same for the rows `index`."""
        return self._replace(widths=tuple(self.widths[row] for row in index))


def run(
    split: SplitModel,
    tokens: Tensor,
    attention_mask: Tensor | None,
    cells: Tensor | None,
    groups: RowGroups | None = None,
    read: Tensor | None = None,
) -> Tensor:
    """The head's input for all columns of some canvases.

    Args:
        split: of the model.
        tokens: int64 [n B, L], n canvases of each of B rows.
        attention_mask: int64 [B, L], None when no row is padded.
        cells: int64 [T], the real cells of [B, L], to run packed, all of them where there is no mask; None: rows run
            with their padding.
        groups: of the B rows, to run one after the other.
        read: int64 [N], the columns r L + l of all canvases that are read; None: all are.

    Returns:
        [n B, L, H]; zeros in padding where rows run packed or in groups.
    """
    rows, columns = tokens.shape
    if groups is not None:
        return _run_groups(split, tokens, groups, attention_mask, read)
    mask = None if attention_mask is None else attention_mask.repeat(rows // len(attention_mask), 1)
    if cells is None:
        return split.body(tokens, mask, read)
    lengths = tokens.new_full((rows,), columns) if mask is None else mask.sum(1)
    size = len(cells) if attention_mask is None else attention_mask.numel()
    cells = torch.cat([cells + start for start in range(0, rows * columns, size)])
    if read is not None:
        read = read.new_zeros(rows * columns).index_copy(0, cells, torch.arange(len(cells), device=cells.device))[read]
    hidden = _run_packed(split, tokens.flatten()[cells], cells % columns, lengths, columns, read)
    return hidden.new_zeros(rows * columns, hidden.shape[1]).index_copy(0, cells, hidden).view(rows, columns, -1)


def row_layout(
    split: SplitModel, lengths: list[int], canvases: int, device: torch.device
) -> tuple[bool, RowGroups | None, str]:
    """How rows are to run: packed, in groups, or together with their padding.

    Args:
        split: of the model.
        lengths: of the rows.
        canvases: of each row.
        device: of the tokens.

    Returns:
        packed: whether rows run packed, if attention and model can.
        groups: where neither packed nor padded rows get their own tokens; else None.
        note: what to tell the user.
    """
    if len(lengths) * canvases > 1 and (why := visibility.why_not_batched(split.model, device)):
        note = _log_once(split, f"rows run one at a time, because {why}")
        return False, RowGroups(tuple(lengths), one_by_one=True), note
    alike = len(set(lengths)) < 2
    if alike and not is_packed(split.model):
        return False, None, ""
    packed, note = runs_packed(split)
    if alike:
        return packed, None, ""
    if not packed and (why := visibility.why_not_padded(split.model, device)):
        note = _log_once(split, f"only rows of one length run together, because {why}")
        return False, RowGroups(tuple(lengths), one_by_one=False), note
    return packed, None, note


def runs_packed(split: SplitModel) -> tuple[bool, str]:
    """Whether rows run packed, if attention and model can, and what to tell the user."""
    if not is_flash(split.model) and not is_packed(split.model):
        return False, ""
    why = _why_not_packed(split)
    if why is None:
        return True, f"rows run without their padding under {attention_of(split.model)}"
    _log.info("rows run with their padding, because %s", why)
    return False, f"rows run with their padding, because {why}"


def has_own_bits(split: SplitModel) -> bool:
    """Whether a row has the same bits in any company, since rows of any lengths run packed on a CPU."""
    return is_packed(split.model) and runs_packed(split)[0]


def _log_once(split: SplitModel, note: str) -> str:
    """Log a note unless it was logged for this model before; returns it."""
    logged = _logged.setdefault(split.model, set())
    if note not in logged:
        logged.add(note)
        _log.warning("%s", note)
    return note


def _run_groups(
    split: SplitModel, tokens: Tensor, groups: RowGroups, attention_mask: Tensor | None, read: Tensor | None
) -> Tensor:
    """Hidden states [n B, L, H] of tokens [n B, L], zeros in columns that do not run."""
    count, result = len(groups.widths), None
    for rows in groups.groups(len(tokens) // count).values():
        width, row = groups.widths[rows[0] % count], torch.tensor(rows, device=tokens.device)
        if width == 0:
            continue
        mask = attention_mask[row % count, :width] if groups.padded and attention_mask is not None else None
        hidden = split.body(tokens[row, :width], mask, None if read is None else _read_in(row, width, read, tokens))
        if result is None:
            result = hidden.new_zeros(*tokens.shape, hidden.shape[-1])
        result[row, :width] = hidden
    return result


def _read_in(row: Tensor, width: int, read: Tensor, tokens: Tensor) -> Tensor:
    """Which of the columns [len(row), width] of some rows are read, of those in all `tokens` that are."""
    place = row.new_full((len(tokens),), -1).index_copy(0, row, torch.arange(len(row), device=row.device))
    place, column = place[read.div(tokens.shape[1], rounding_mode="floor")], read % tokens.shape[1]
    return (place * width + column)[place >= 0]


def _run_packed(
    split: SplitModel,
    tokens: Tensor,
    position: Tensor,
    lengths: Tensor,
    longest: int,
    read: Tensor | None = None,
) -> Tensor:
    """Hidden states [T, H] of packed rows: tokens [T], their positions [T] in their own rows, and lengths [B]."""
    count, mask = len(tokens), None
    if is_packed(split.model):
        if fill := -count % TOKENS_MULTIPLE:  # another row, of which nothing is kept
            tokens, position = (F.pad(x, (0, fill)) for x in (tokens, position))
            lengths = F.pad(lengths, (0, 1), value=fill)
        if window_of(split.model) is not None:  # else the model makes one of its windows, which nobody reads
            mask = full_mask(split.model, len(tokens), tokens.device)
    ends = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    row_ends = dict(cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q=longest, max_length_k=longest)
    return split.body(tokens[None], mask, read, position_ids=position[None], **row_ends)[0, :count]


def _why_not_packed(split: SplitModel) -> str | None:
    """Why a model cannot run packed rows, None where it can. Found once per model and its settings."""
    model = getattr(split.model, "_orig_mod", split.model)
    state = run_settings(model)
    known = _verdicts.get(model)
    if known is not None and known[0] == state:
        return known[1]
    eager = copy.copy(split)
    eager.model = model  # torch.compile need not compile for these few tokens
    eager.body_context = nullcontext
    with no_deferral(), torch.no_grad():
        why, finite = _inspect(eager)
    if finite:
        _verdicts[model] = (state, why)
    return why


def _inspect(split: SplitModel) -> tuple[str | None, bool]:
    """Why not, and whether the hidden states were finite: of NaN nothing can be concluded.

    The rows are 0 1 2 and 3 1. The hidden states of the second must not depend on the first, bit by bit; they must
    depend on the second's own positions; and these must start where the model itself starts them.
    """
    name, device = type(split.model).__name__, next(split.model.parameters()).device
    lengths = torch.tensor([3, 2], device=device)

    def second(*tokens: int, position: tuple[int, ...] = (0, 1, 2, 0, 1)) -> Tensor:
        given = torch.tensor(tokens, device=device), torch.tensor(position, device=device)
        return _run_packed(split, *given, lengths, 3)[3:]

    try:
        hidden = second(0, 1, 2, 3, 1)
        if not bool(hidden.isfinite().all()):
            return f"hidden states of {name} are not finite", False
        alone = torch.tensor([[3, 1]], device=device)
        numbered = split.body(alone, None, position_ids=torch.tensor([[0, 1]], device=device))
        if not torch.equal(split.body(alone, None), numbered):
            return f"the positions of {name} do not begin at 0", True
        if not torch.equal(hidden, second(0, 1, 3, 3, 1)):
            return f"packed rows see each other in {name}", True
        # another distance: some models depend on nothing else of positions
        if torch.equal(hidden, second(0, 1, 2, 3, 1, position=(0, 1, 2, 0, 2))):
            return f"{name} ignores position_ids", True
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        return f"{name} takes no packed rows: {str(error).strip().partition(chr(10))[0]}", True
    return None, True
