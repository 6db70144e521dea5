"""The layout of rows for denoising: their masks, their blocks, and the seed of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dllm.fast.sampling.inputs import row_seeds
from dllm_kernels.transfer_tokens.api import MAX_WINDOW

Seed = int | Sequence[int] | Tensor | None


class Span(NamedTuple):
    """A block of a row.

    start, stop: its columns, `stop` exclusive.
    masks: how many of them are masked.
    blocks: how many blocks the row has.
    seed: of the row.
    """

    start: int
    stop: int
    masks: int
    blocks: int
    seed: int


@dataclass(frozen=True)
class RowLayout:
    """B rows of different length, on the CPU, with their blocks and seeds.

    rows: int64 vectors of given tokens and masks.
    first: int64 [B], the first generated column of each.
    spans: the blocks of each, from left to right.
    seeds: int64 [B].
    mask_id: the mask token.
    """

    rows: list[Tensor]
    first: Tensor
    spans: list[list[Span]]
    seeds: Tensor
    mask_id: int

    def without_idle_blocks(self, *, keep_between: bool) -> RowLayout:
        """The layout with only the blocks that take steps: those with masks.

        With `keep_between`, blocks between two such blocks stay too, because later blocks attend to their keys and
        values.
        """
        return dataclasses.replace(self, spans=[_blocks_with_steps(row, keep_between) for row in self.spans])

    def window(self, *, by_block: bool) -> int:
        """The number of columns in which a step looks for masks, at most the kernel's window.

        With `by_block` those of the widest block. Otherwise those from the first block to the end of the last one,
        because an earlier block may hold mask tokens that the model itself has committed.

        Raises:
            ValueError: a block is wider than that window.
        """
        widest = max((span.stop - span.start for row in self.spans for span in row), default=1)
        if widest > MAX_WINDOW:
            raise ValueError(f"a block must have at most {MAX_WINDOW} columns, got {widest}: set block_size")
        if by_block:
            return widest
        return min(max((row[-1].stop - row[0].start for row in self.spans if row), default=1), MAX_WINDOW)

    @property
    def most_masks(self) -> int:
        """The largest number of masks in a block, at least 1."""
        return max((span.masks for row in self.spans for span in row), default=1) or 1


def lay_out_prompts(
    prompts: Sequence[Tensor],
    mask_id: int,
    seed: Seed,
    *,
    max_new_tokens: int | None,
    max_length: int | None,
    block_size: int | None,
    first_column: Callable[[int], int],
) -> RowLayout:
    """The layout of prompts to continue: each is followed by its masks.

    Args:
        prompts: int64 vectors.
        mask_id: the mask token.
        seed: as in :meth:`~dllm.core.samplers.base.BaseSampler.sample`.
        max_new_tokens, max_length: see :func:`new_tokens`.
        block_size: columns of a block; None: all masks of a row are one block.
        first_column: the column of the first block, given the length of the prompt.

    Raises:
        ValueError: a prompt holds the mask token, or see :func:`new_tokens`.
    """
    for number, prompt in enumerate(prompts):
        if bool((prompt == mask_id).any()):
            raise ValueError(f"inputs must not hold the mask token, got one in row {number}: infill fills texts")
    rows, spans, seeds = [], [], row_seeds(seed, len(prompts), torch.device("cpu"))
    for prompt, own_seed in zip(prompts, seeds.tolist(), strict=True):
        new = new_tokens(len(prompt), max_new_tokens, max_length)
        rows.append(torch.cat([prompt, prompt.new_full((new,), mask_id)]))
        spans.append(_blocks(rows[-1], first_column(len(prompt)), block_size or new, mask_id, own_seed))
    first = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int64)
    return RowLayout(rows, first, spans, seeds, mask_id)


def new_tokens(given: int, max_new_tokens: int | None, max_length: int | None) -> int:
    """How many masks follow a prompt of `given` tokens: `max_new_tokens`; None: as many as `max_length` columns leave.

    Raises:
        ValueError: both lengths are None, or the prompt fills `max_length`.

    Example:
        >>> new_tokens(5, 3, None), new_tokens(5, None, 12)
        (3, 7)
    """
    if max_new_tokens is not None:
        return max_new_tokens
    if max_length is None:
        raise ValueError("expected max_new_tokens or max_length, got None for both")
    if max_length <= given:
        raise ValueError(f"max_length must exceed every prompt, got {max_length} and {given}")
    return max_length - given


def lay_out_texts(rows: list[Tensor], mask_id: int, seed: Seed, *, block_size: int | None) -> RowLayout:
    """The layout of texts with masks to fill. Blocks begin at column 0; with `block_size` None a row is one block."""
    seeds = row_seeds(seed, len(rows), torch.device("cpu"))
    spans = [
        _blocks(row, 0, block_size or max(1, len(row)), mask_id, own_seed)
        for row, own_seed in zip(rows, seeds.tolist(), strict=True)
    ]
    return RowLayout(rows, torch.zeros(len(rows), dtype=torch.int64), spans, seeds, mask_id)


def _blocks(row: Tensor, first: int, size: int, mask_id: int, seed: int) -> list[Span]:
    """The blocks of a row from column `first` on, the last one cut at its end."""
    starts = range(first, len(row), size)
    ends = [min(start + size, len(row)) for start in starts]
    return [
        Span(start, stop, int((row[start:stop] == mask_id).sum()), len(starts), seed)
        for start, stop in zip(starts, ends, strict=True)
    ]


def _blocks_with_steps(row: list[Span], keep_between: bool) -> list[Span]:
    masked = [number for number, span in enumerate(row) if span.masks]
    if not keep_between:
        return [row[number] for number in masked]
    return row[masked[0] : masked[-1] + 1] if masked else []
