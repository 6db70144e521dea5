"""Which columns of each row a step runs, and what they see: the whole canvas, or windows of it beside a cache.

    no cache            each step runs the canvas
    no cache, causal    each step runs the canvas, and no position sees a later block (BD3LM, recomputed)
    "block", causal     the first step of a call runs the prompts and the first block; the first step of a block runs
                        the block before, whose tokens are final now, and the block; any other step the block alone
    "prefix"            the first step of a block runs the canvas, any other the block and what follows it
    "dual"              the first step of a block runs the canvas, any other the block alone

What runs has its keys and values written to the cache, in place; all else is read from there. "block" is exact: what it
reads is what the canvas would compute. "prefix" and "dual" (Fast-dLLM) read keys and values of a canvas that has
changed since.

Rows begin blocks at steps of their own. Under "block" a window that reaches one block back serves all rows: where
nothing has begun, it writes what is there already. Under the others the rows that begin a block run their canvas by
themselves, then all rows run their window, of which nothing is kept for those that have just run. Nothing is ever kept
of rows that have finished, so a step in which all have leaves the cache as it is.

Under a right shift the logits of a block's first token are those of the column before it. Under "block" that column
runs along; under the others it does not, and what it said in the block's first step is read in the later ones too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dllm.fast import unpadded
from dllm.fast.cache import KeyValueCache
from dllm.fast.head import HeadTap

if TYPE_CHECKING:
    from dllm.fast.denoise import Policy, State


class Pass(NamedTuple):
    """One forward of a window of each row.

    width: columns that run.
    back: the window begins so many columns left of the row's block, or at column 0; None: at column 0.
    seen: so many first columns are read from the cache; None: the window sees itself.
    all_seen: every column of those is seen by every query: no mask is needed.
    beginning: so many rows run, at least as many as begin a block in this step: those, and then others, of which
        nothing is kept; None: all rows run, for their own sake.
    """

    width: int
    back: int | None
    seen: int | None
    all_seen: bool = False
    beginning: int | None = None


class Now(NamedTuple):
    """Where each row stands, [B] each: whether it has work left, its block's number (of a table's last, if not), first
    column, the column after its last, and its number of steps."""

    active: Tensor
    block: Tensor
    begin: Tensor
    stop: Tensor
    steps: Tensor

    @classmethod
    def of(cls, state: State) -> Now:
        active, block = state.block < state.blocks, state.block.clamp(max=state.stop.shape[1] - 1)
        begin, stop, steps = (
            table.gather(1, block[:, None]).squeeze(1) for table in (state.begin, state.stop, state.steps)
        )
        return cls(active, block, begin, torch.where(active, stop, 0), steps)


class Bodies(NamedTuple):
    """What the head would be given for all columns that ran, [N, H], one for each canvas (two under guidance); column c
    of row b is at base[b] + c, int64 [B]."""

    hidden: list[Tensor]
    base: Tensor


def run(
    tap: HeadTap, state: State, policy: Policy, now: Now, cache: KeyValueCache | None, passes: Sequence[Pass]
) -> Bodies:
    """The body's output for the columns of some passes."""
    outputs, offset, base, meant = [], 0, torch.zeros_like(now.begin), None
    begins = now.active & (state.step == 0)
    divided = any(one.beginning is not None for one in passes)
    for one in passes:
        if divided:
            meant = begins if one.beginning is not None else now.active & ~begins
        hidden, row, origin = _window(tap, state, policy, now, cache, one, meant)
        width = hidden[0].shape[1]
        first = offset + torch.arange(len(row), device=row.device) * width - origin
        base = first if meant is None else torch.where(meant, base.index_copy(0, row, first), base)
        outputs.append([part.flatten(0, 1) for part in hidden])
        offset += len(row) * width
    hidden = [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*outputs, strict=True)]
    return Bodies(hidden, base)


def canvas(state: State) -> list[Pass]:
    """The whole of every row."""
    return [Pass(state.tokens.shape[1], None, None)]


def _window(
    tap: HeadTap,
    state: State,
    policy: Policy,
    now: Now,
    cache: KeyValueCache | None,
    one: Pass,
    meant: Tensor | None,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Output [b, W, H] of one pass for each canvas, its rows int64 [b], and the first column of each one's window.

    `meant` bool [B] are the rows of which something is kept; None: all that have not finished.
    """
    batch, columns = state.tokens.shape
    everyone = torch.arange(batch, device=now.begin.device)
    canvases = [state.tokens]
    if policy.cfg_scale > 0:
        canvases.append(torch.where(state.given, policy.mask_id, state.tokens))
    if cache is None and policy.block_causal is None:
        both = unpadded.run(tap, torch.cat(canvases), state.attention_mask, state.real, state.apart)
        return list(both.chunk(len(canvases))), everyone, torch.zeros_like(now.begin)
    row = everyone if one.beginning is None else _first(meant, one.beginning)
    begin, first, length = (values[row] for values in (now.begin, state.begin[:, 0], state.length))
    origin = torch.zeros_like(begin) if one.back is None else (begin - one.back).clamp(min=0)
    column = origin[:, None] + torch.arange(one.width, device=begin.device)
    inside, count = column.clamp(max=columns - 1), len(canvases)
    tokens = torch.cat([tokens[row].gather(1, inside) for tokens in canvases])
    mask = _seen(column, first, length, policy.block_causal, one)
    mask = mask if one.all_seen else mask.repeat(count, 1, 1, 1)
    context = {"position_ids": inside.repeat(count, 1)}
    if cache is not None:
        kept = (column < columns) & (now.active if meant is None else meant)[row, None]
        target = torch.where(kept, column, cache.columns).repeat(count, 1)
        cache.aim(torch.cat([row + i * batch for i in range(count)]), target, seen=one.seen)
        context["past_key_values"] = cache
    hidden = tap.body(tokens, mask, **context)
    if policy.keeps_before:
        if one.back is None:
            cache.note_before(hidden, begin.repeat(count), (now.active & (state.step == 0))[row].repeat(count))
        else:
            hidden, origin = cache.with_before(hidden), origin - 1
    if cache is not None:
        cache.unaim()
    return list(hidden.chunk(count)), row, origin


def _first(chosen: Tensor, count: int) -> Tensor:
    """The rows that are `chosen` (bool [B]), in order, and then others: `count` of them, int64."""
    return (~chosen).to(torch.int8).argsort(stable=True)[:count]


def _seen(column: Tensor, first: Tensor, length: Tensor, size: int | None, one: Pass) -> Tensor:
    """bool [b, 1, W, keys], to be broadcast: which columns each column of the windows [b, W] sees.

    Blocks of a row are counted from the first one that takes steps, which begins at column `first` [b], to both sides:
    the first block of a prompt may be shorter. A column sees those of its own block and of earlier ones. Columns behind
    the row's end are seen by none.
    """
    if one.all_seen:
        return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=column.device)
    key = torch.arange(one.width if one.seen is None else one.seen, device=column.device)
    real = (key < length[:, None])[:, None, None, :]
    if size is None:
        return real
    query_block = (column - first[:, None]).div(size, rounding_mode="floor")
    key_block = (key - first[:, None]).div(size, rounding_mode="floor")
    return real & (key_block[:, None, None, :] <= query_block[:, None, :, None])


def plan(
    state: State, policy: Policy, *, opening: int | None, beginning: int | None, exact: bool, reach: int = 0
) -> list[Pass]:
    """The passes of a step.

    Args:
        state: of the rows.
        opening: in the call's first step the column at which the first block of every row has ended, else None.
        beginning: how many rows begin a block in this step, at most; None: not known.
        exact: whether numbers of the state may be read, so that windows reach no further than they must. Otherwise few
            kinds of steps come up, and nothing waits for a device.
        reach: columns from the first block of a row to its end, at most; for the "prefix" cache.
    """
    rows, columns = state.tokens.shape
    padded = state.attention_mask is not None
    if policy.cache is None:
        if policy.block_causal is None:
            return canvas(state)
        width = int(Now.of(state).stop.max()) if exact else columns
        return [Pass(max(width, 1), None, None)]
    if policy.cache == "block":
        lead = int(policy.right_shift)  # the position before the block is read for the block's first
        if opening is not None:
            return [Pass(opening, None, None)]
        stop = Now.of(state).stop if exact else None
        seen = columns if stop is None else max(int(stop.max()), 1)
        if beginning != 0:
            return [Pass(policy.block_causal + policy.window, policy.block_causal, seen)]
        in_line = stop is not None and lead == 0 and bool((stop == seen).all())
        return [Pass(policy.window + lead, lead, seen, all_seen=in_line)]
    whole = Pass(columns, None, None, all_seen=not padded)
    if beginning == rows:
        return [whole]
    width = policy.window
    if policy.cache == "prefix":
        width = int((state.length - Now.of(state).begin).max()) if exact else reach
    window = Pass(width, 0, columns, all_seen=not padded)
    if beginning == 0:
        return [window]
    # powers of two: a step for each number of rows would be captured
    some = beginning if exact else min(rows, 1 << (beginning - 1).bit_length())
    return [whole._replace(beginning=some), window]
