"""Which columns of each row a step runs through the model, and which columns they attend to.

    cache     attention      what a step runs
    none      full           the canvas
    none      block-causal   the canvas (BD3LM, recomputed)
    "block"   block-causal   first step of the call: the prompts and the first block;
                             first step of a block: the block before, which is final now, and the block;
                             other steps: the block
    "prefix"  full           first step of a block: the canvas; other steps: the block and everything after it
    "dual"    full           first step of a block: the canvas; other steps: the block
    "causal"  block-causal   first step of a block: what is final and was not read before, causally, then the block;
                             other steps: the block

The keys and values of the columns that run are written to the cache in place; those of all other columns are read from
it. "block" is exact: the cache holds what the whole canvas would compute. "prefix" and "dual" (Fast-dLLM,
arXiv:2505.22618) are approximate: the canvas has changed since its keys and values were written. "causal" (Nemotron)
keeps of prompts and finished blocks what causal attention computes: it has a pass of its own, in which no position sees
a later one (:mod:`dllm.fast.sampling.first_tokens`), and whose last logits give the next block's first token.

Rows start blocks at different steps. With "block", one window that reaches back by one block serves all rows: where no
block starts, it rewrites what the cache holds. With the others, the rows that start a block run their canvas in a pass
of their own; then all rows run their window, of which nothing is kept for the rows of the first pass. Nothing is ever
kept of finished rows, so a step after all rows have finished leaves the cache as it is.

Under a right shift the logits of a block's first token come from the column before the block. With "block" that column
is run too. With the others it is not: its hidden state is stored in the block's first step and read in later ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dllm.fast.attention import full_mask
from dllm.fast.head.split import SplitModel
from dllm.fast.sampling import unpadded
from dllm.fast.sampling.cache import KeyValueCache
from dllm.fast.sampling.state import Policy, State
from dllm_kernels import CurrentBlock


class Pass(NamedTuple):
    """One forward of the model over a window of each row.

    width: columns of the window.
    back: the window starts this many columns before the row's block, or at column 0 if there are fewer; None: it
        starts at column 0.
    visible: attention reads the first `visible` columns from the cache; None: the window attends to itself.
    all_visible: every query sees all of those columns: the mask hides none.
    starting_rows: the pass runs this many rows: those that start a block in this step first, then others, of which
        nothing is kept; None: it runs all rows.
    causal: no position sees a later one, also of its own block.
    """

    width: int
    back: int | None
    visible: int | None
    all_visible: bool = False
    starting_rows: int | None = None
    causal: bool = False


class HiddenStates(NamedTuple):
    """The head's input for all columns that ran.

    hidden: [N, H], one for each canvas (two under guidance).
    offset: int64 [B]; column c of row b is at index offset[b] + c.
    """

    hidden: list[Tensor]
    offset: Tensor


def run(
    split: SplitModel,
    state: State,
    policy: Policy,
    cache: KeyValueCache | None,
    passes: Sequence[Pass],
) -> HiddenStates:
    """Run the model's body over the columns of some passes."""
    if runs_canvas(policy, cache):
        return HiddenStates(run_canvas(split, state, policy), canvas_offset(state))
    now = CurrentBlock.of(state.schedule)
    outputs, ran, offset, kept_rows = [], 0, torch.zeros_like(now.begin), None
    starts = now.active & (state.step == 0)
    divided = any(window.starting_rows is not None for window in passes)
    for window in passes:
        if divided:
            kept_rows = starts if window.starting_rows is not None else now.active & ~starts
        hidden, row, origin = run_window(split, state, policy, now, cache, window, kept_rows)
        width = hidden[0].shape[1]
        found = ran + torch.arange(len(row), device=row.device) * width - origin
        offset = found if kept_rows is None else torch.where(kept_rows, offset.index_copy(0, row, found), offset)
        outputs.append([part.flatten(0, 1) for part in hidden])
        ran += len(row) * width
    hidden = [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*outputs, strict=True)]
    return HiddenStates(hidden, offset)


def canvas(state: State) -> list[Pass]:
    """The one pass over the whole of every row."""
    return [Pass(state.tokens.shape[1], None, None)]


def runs_canvas(policy: Policy, cache: KeyValueCache | None) -> bool:
    """Whether a step runs all columns, which see each other."""
    return cache is None and policy.block_causal is None


def canvas_offset(state: State) -> Tensor:
    """Where each row begins among all columns, int64 [B]."""
    batch, columns = state.tokens.shape
    return torch.arange(0, batch * columns, columns, device=state.tokens.device)


def run_canvas(split: SplitModel, state: State, policy: Policy, read: Tensor | None = None) -> list[Tensor]:
    """Run all columns, which see each other.

    Args:
        read: int64 [N], the positions b L + l whose hidden states are read; None: all are.

    Returns:
        [B L, H] for each canvas.
    """
    canvases = _canvases(state, policy)
    tokens = canvases[0] if len(canvases) == 1 else torch.cat(canvases)
    if split.tail is None:
        read = None
    elif read is not None and len(canvases) == 2:
        read = torch.cat([read, read + state.tokens.numel()])
    hidden = unpadded.run(split, tokens, state.attention_mask, state.cells, state.row_groups, read)
    return [part.flatten(0, 1) for part in hidden.chunk(len(canvases))]


def _canvases(state: State, policy: Policy) -> list[Tensor]:
    """The canvas; under guidance also that without the prompt."""
    if policy.cfg_scale == 0:
        return [state.tokens]
    return [state.tokens, torch.where(state.given, policy.mask_id, state.tokens)]


def run_window(
    split: SplitModel,
    state: State,
    policy: Policy,
    now: CurrentBlock,
    cache: KeyValueCache | None,
    window: Pass,
    kept_rows: Tensor | None,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Run one pass.

    Args:
        kept_rows: bool [B], the rows whose output and keys are kept; None: those of all rows that are not finished.

    Returns:
        Hidden states [b, W, H] for each canvas, the rows int64 [b], and the first column of each one's window [b].
    """
    (batch, columns), canvases = state.tokens.shape, _canvases(state, policy)
    row = (
        torch.arange(batch, device=now.begin.device)
        if window.starting_rows is None
        else _first_rows(kept_rows, window.starting_rows)
    )
    begin, first, length = (values[row] for values in (now.begin, state.begin[:, 0], state.length))
    origin = torch.zeros_like(begin) if window.back is None else (begin - window.back).clamp(min=0)
    column = origin[:, None] + torch.arange(window.width, device=begin.device)
    inside, count = column.clamp(max=columns - 1), len(canvases)
    tokens = torch.cat([tokens[row].gather(1, inside) for tokens in canvases])
    keys = window.width if window.visible is None else window.visible
    if window.all_visible:
        mask = full_mask(split.model, keys, column.device)
    else:
        size = 1 if window.causal else policy.block_causal
        mask = _attention_mask(column, first, length, size, keys).repeat(count, 1, 1, 1)
    context = {"position_ids": inside.repeat(count, 1)}
    if cache is not None:
        kept = (column < columns) & (now.active if kept_rows is None else kept_rows)[row, None]
        target = torch.where(kept, column, cache.columns).repeat(count, 1)
        rows = torch.cat([row + i * batch for i in range(count)])
        cache.set_write_columns(rows, target, visible=window.visible, first_rows=window.starting_rows is None)
        context["past_key_values"] = cache
    hidden = split.body(tokens, mask, **context)
    if policy.keeps_shift_column:
        if window.back is None:
            starts = (now.active & (state.step == 0))[row].repeat(count)
            cache.store_shift_column(hidden, begin.repeat(count), starts)
        else:
            hidden, origin = cache.prepend_shift_column(hidden), origin - 1
    if cache is not None:
        cache.clear_write_columns()
    return list(hidden.chunk(count)), row, origin


def _first_rows(chosen: Tensor, count: int) -> Tensor:
    """Indices int64 [count] of the rows that are `chosen` (bool [B]), in order, then of others."""
    return (~chosen).to(torch.int8).argsort(stable=True)[:count]


def _attention_mask(column: Tensor, first: Tensor, length: Tensor, size: int | None, keys: int) -> Tensor:
    """The mask bool [b, 1, W, keys], to be broadcast: which keys each column of the windows [b, W] sees.

    Under block-causal attention a column sees its own block and earlier ones. Blocks are counted from column `first`
    [b], the first one that is generated, in both directions: the first block of a prompt may be shorter. Nothing sees
    columns from `length` [b] on.
    """
    key = torch.arange(keys, device=column.device)
    real = (key < length[:, None])[:, None, None, :]
    if size is None:
        return real
    query_block = (column - first[:, None]).div(size, rounding_mode="floor")
    key_block = (key - first[:, None]).div(size, rounding_mode="floor")
    return real & (key_block[:, None, None, :] <= query_block[:, None, :, None])
