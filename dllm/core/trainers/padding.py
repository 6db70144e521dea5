"""Collators that pad samples, to few different widths where steps are captured as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import transformers

# With few_shapes the width of a batch is a multiple of this.
GRID = 64


def padding_collator(tokenizer: Any, few_shapes: bool = False, positions: int | None = None) -> Callable[..., Any]:
    """A collator that pads tokens by the tokenizer and labels with -100.

    Args:
        tokenizer: None for a collator that stacks samples without padding.
        few_shapes: pad to a multiple of 64 tokens, unless that exceeds `positions`.
        positions: of the model, or None.
    """
    if tokenizer is None:
        return transformers.default_data_collator
    tight = transformers.DataCollatorForSeq2Seq(tokenizer, padding=True, return_tensors="pt")
    if not few_shapes:
        return tight
    wide = transformers.DataCollatorForSeq2Seq(tokenizer, padding=True, pad_to_multiple_of=GRID, return_tensors="pt")
    return PadToGrid(tight, wide, positions)


@dataclass(frozen=True)
class PadToGrid:
    """Pads by `wide`, to a multiple of 64, if that is at most `positions`; else by `tight`, to the longest sample."""

    tight: Callable[[Sequence[Any]], Mapping[str, Any]]
    wide: Callable[[Sequence[Any]], Mapping[str, Any]]
    positions: int | None

    def __call__(self, samples: Sequence[Any]) -> Mapping[str, Any]:
        longest = max(len(sample["input_ids"]) for sample in samples)
        fits = self.positions is None or -(-longest // GRID) * GRID <= self.positions
        return (self.wide if fits else self.tight)(samples)
