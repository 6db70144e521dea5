"""States of other rows: rows that join get the sizes of those that run, and sizes shrink when rows have left.

Rows of one state share its sizes: L columns, N blocks of S steps, a window of W columns. What a row does not need is
padding, which changes nothing for it: its tokens, blocks and steps are those that it has alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.fast.sampling.state import State
from dllm.fast.sampling.unpadded import cells_of

# The sizes of a state's tensors after the number of rows, and what pads them; tokens are padded with the mask token.
_PADDED: dict[str, tuple[tuple[str, ...], float]] = {
    "tokens": (("columns",), 0),
    "given": (("columns",), False),
    "editable": (("columns",), False),
    "log_probs": (("columns",), torch.nan),
    "begin": (("blocks",), 0),
    "stop": (("blocks",), 0),
    "steps": (("blocks",), 0),
    "amount": (("blocks", "steps"), 0),
    "proposals": (("window",), -1),
    "confidence": (("window",), -torch.inf),
}
_OF_THE_BATCH = ("attention_mask", "overflow", "temperature", "suppress", "begin_suppress", "cells", "row_groups")


class Sizes(NamedTuple):
    """What the rows of a state have room for.

    columns: L. blocks: N. steps: S, of a block. window: W, at most L.
    """

    columns: int
    blocks: int
    steps: int
    window: int

    @classmethod
    def of(cls, state: State) -> Sizes:
        return cls(state.tokens.shape[1], *state.amount.shape[1:], state.proposals.shape[1])


def resized(state: State, sizes: Sizes, mask_id: int) -> State:
    """The state with these sizes, which every row must fit into; how rows run (`cells`, `row_groups`) is left out.

    Padding holds the mask token: no end of text, so it ends no row.

    Example:
        >>> from dllm.fast.sampling.batch import DenoisingBatch
        >>> from dllm.fast.sampling.schedule import Block, Schedule
        >>> from dllm.fast.sampling.state import Policy
        >>> schedule, one = Schedule.of([[Block(1, 3, [1, 1])]], torch.device("cpu")), torch.ones(1, dtype=torch.int64)
        >>> rows = dict(given=torch.zeros(1, 3, dtype=torch.bool), first=one, length=one * 3, seeds=one)
        >>> batch = DenoisingBatch(tokens=torch.tensor([[5, 9, 9]]), schedule=schedule, **rows)
        >>> state = batch.state(Policy(mask_id=9, window=2, block_length=2))
        >>> resized(state, Sizes(columns=4, blocks=1, steps=2, window=2), mask_id=9).attention_mask
        tensor([[1, 1, 1, 0]])
    """
    changed = {}
    for name, (dimensions, value) in _PADDED.items():
        tensor = getattr(state, name)
        if tensor is not None:
            shape = [getattr(sizes, dimension) for dimension in dimensions]
            changed[name] = _padded(tensor, shape, mask_id if name == "tokens" else value)
    mask = padding_mask(state.length, sizes.columns)
    return replace(state, **changed, attention_mask=mask, cells=None, row_groups=None)


def narrowed(state: State, sizes: Sizes, mask_id: int) -> State:
    """The state with smaller sizes; its rows run as before.

    A window of W columns ends where the row's block does, so one that is wider than all columns begins at column 0, and
    what is cut from it lies behind the block.
    """
    if Sizes.of(state) == sizes:
        return state
    smaller = resized(state, sizes, mask_id)
    cells = None if state.cells is None else cells_of(smaller.tokens, smaller.attention_mask)
    return replace(smaller, cells=cells, row_groups=state.row_groups)


def joined(states: Sequence[State]) -> State:
    """The rows of states of the same sizes, one after the other; how rows run, and their temperatures, are left out.

    Example:
        >>> joined([])
        Traceback (most recent call last):
        ValueError: there must be at least one state, got none
    """
    if not states:
        raise ValueError("there must be at least one state, got none")
    first, found = states[0], {}
    for field in fields(State):
        if field.name not in _OF_THE_BATCH:
            tensors = [getattr(state, field.name) for state in states]
            found[field.name] = None if tensors[0] is None else torch.cat(tensors)
    return State(
        **found,
        attention_mask=padding_mask(found["length"], found["tokens"].shape[1]),
        overflow=sum(state.overflow for state in states),
        temperature=None,
        suppress=first.suppress,
        begin_suppress=first.begin_suppress,
    )


def padding_mask(length: Tensor, columns: int) -> Tensor | None:
    """int64 [B, L], 1 in the columns of each row and 0 in its padding; None if no row is padded. Waits for the device.

    Example:
        >>> padding_mask(torch.tensor([1, 2]), 2)
        tensor([[1, 0],
                [1, 1]])
        >>> padding_mask(torch.tensor([2, 2]), 2) is None
        True
    """
    if not bool((length < columns).any()):
        return None
    return (torch.arange(columns, device=length.device) < length[:, None]).long()


def _padded(tensor: Tensor, shape: Sequence[int], value: float) -> Tensor:
    """A tensor [B, ...] padded or cut at the end of each later dimension to `shape`; itself if it has that shape."""
    if list(tensor.shape[1:]) == list(shape):
        return tensor
    ends = [size - now for now, size in zip(tensor.shape[1:], shape, strict=True)]
    return F.pad(
        tensor, [end for pair in ((0, end) for end in reversed(ends)) for end in pair], value=value
    ).contiguous()
