"""Splits of data sets: taking a number of rows, holding out test rows, joining and mixing data sets."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

from dllm.data.spec import Source

_log = logging.getLogger("dllm")

# Seed for held-out rows and for the order of a mixture.
SEED = 42
# Splits that are held out of "train" if they are missing.
HELD_OUT = ("test", "validation")
HELD_OUT_SHARE = 0.05


def take_row_counts(splits: Mapping[str, Any], source: Source, *, in_order: bool) -> dict[str, Any]:
    """Take the number of rows of each split that `source.counts` gives; splits without a count are taken whole.

    A missing test or validation split with a count is held out of train first.

    Args:
        splits: of a data set, by name.
        source: the specification with the counts.
        in_order: hold out the first rows (the only way for a stream). Otherwise rows are drawn with a fixed seed,
            because many data sets are sorted by origin.

    Raises:
        ValueError: a missing split, or one with too few rows.
    """
    taken = dict(splits)
    for split in source.counts:
        if split in taken:
            continue
        if split not in HELD_OUT or "train" not in taken:
            raise ValueError(f"{source.name} must have the split {split!r}, got {', '.join(taken)}")
        count = source.counts[split]
        _log.warning("%s has no split %s: %d rows of train are held out for it", source.name, split, count)
        _check_count(source.name, split, taken["train"], count)
        taken[split], taken["train"] = _held_out(taken["train"], count, in_order)
    for split, count in source.counts.items():
        _check_count(source.name, split, taken[split], count)
        taken[split] = taken[split].take(count)
    return taken


def held_out(name: str, train: Any) -> dict[str, Any]:
    """Split off 5 % of the rows of train as test, drawn with a fixed seed. A data set of one row gets no test split."""
    if train.num_rows < 2:
        return {"train": train}
    splits = train.train_test_split(test_size=HELD_OUT_SHARE, seed=SEED)
    _log.warning("%s has no split test: %d rows of train are held out for it", name, splits["test"].num_rows)
    return dict(splits)


def join(sources: Sequence[Source], parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the splits of several data sets by name, one data set after the other. With weights, train is a mixture:
    each row comes from a data set with probability proportional to its weight, until one data set ends.

    Args:
        sources: the specifications; all of them have weights, or none.
        parts: the splits of each source.
    """
    import datasets

    joined = {}
    for split in dict.fromkeys(split for part in parts for split in part):
        rows = [(source.weight, part[split]) for source, part in zip(sources, parts, strict=True) if split in part]
        if len(rows) == 1:
            joined[split] = rows[0][1]
        elif split == "train" and rows[0][0] is not None:
            total = sum(weight for weight, _ in rows)
            shares = [weight / total for weight, _ in rows]
            joined[split] = datasets.interleave_datasets([part for _, part in rows], probabilities=shares, seed=SEED)
        else:
            joined[split] = datasets.concatenate_datasets([part for _, part in rows])
    return joined


def row_count(rows: Any) -> int | None:
    """The number of rows; None for a stream."""
    return getattr(rows, "num_rows", None)


def column_names(rows: Any) -> list[str]:
    """The column names; read from the first row if a stream does not list them, empty if it has no row."""
    return list(rows.column_names or next(iter(rows.take(1)), {}))


def _held_out(train: Any, count: int, in_order: bool) -> tuple[Any, Any]:
    """`count` held-out rows, and the others, each in their original order."""
    if in_order:
        return train.take(count), train.skip(count)
    chosen = set(random.Random(SEED).sample(range(train.num_rows), count))
    return train.select(sorted(chosen)), train.select([row for row in range(train.num_rows) if row not in chosen])


def _check_count(name: str, split: str, rows: Any, count: int) -> None:
    present = row_count(rows)
    if present is not None and count > present:
        raise ValueError(f"{name}[{split}:...] must count at most its {present} rows, got {count!r}")
