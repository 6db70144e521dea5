"""Samples padded to one batch, with few different widths where steps are captured as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import transformers

# Widths of batches are multiples of this where few different ones are wanted.
GRID = 64


def padding_collator(tokenizer: Any, few_shapes: bool = False, positions: int | None = None) -> Callable[..., Any]:
    """Samples padded by the tokenizer, labels with -100; stacked as they are where there is none.

    Args:
        tokenizer: or None.
        few_shapes: pad to a multiple of 64 tokens.
        positions: that the model has; a batch that would not fit into them is padded to its longest sample.
    """
    if tokenizer is None:
        return transformers.default_data_collator
    tight = transformers.DataCollatorForSeq2Seq(tokenizer, padding=True, return_tensors="pt")
    if not few_shapes:
        return tight
    wide = transformers.DataCollatorForSeq2Seq(tokenizer, padding=True, pad_to_multiple_of=GRID, return_tensors="pt")
    return OnGrid(tight, wide, positions)


@dataclass(frozen=True)
class OnGrid:
    """`wide` where the width that it pads to, a multiple of 64, is at most `positions`; else `tight`."""

    tight: Callable[[Sequence[Any]], Mapping[str, Any]]
    wide: Callable[[Sequence[Any]], Mapping[str, Any]]
    positions: int | None

    def __call__(self, samples: Sequence[Any]) -> Mapping[str, Any]:
        longest = max(len(sample["input_ids"]) for sample in samples)
        fits = self.positions is None or -(-longest // GRID) * GRID <= self.positions
        return (self.wide if fits else self.tight)(samples)
