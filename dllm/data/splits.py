"""Splits of data sets: how many rows of each, held out of others, joined and mixed."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

from dllm.data.spec import Source

_log = logging.getLogger("dllm")

# Of the rows that are held out, and of the order of a mixture.
SEED = 42
# Splits that rows of "train" are held out for where they are missing.
HELD_OUT = ("test", "validation")
HELD_OUT_SHARE = 0.05


def take_counts(splits: Mapping[str, Any], source: Source, *, in_order: bool) -> dict[str, Any]:
    """The splits with as many rows as the source counts; rows of a split that is not counted are all taken.

    A test or validation split that is counted and missing is held out of train, before train's own count.

    Args:
        splits: of a data set, by name.
        source: whose counts are asked for.
        in_order: hold out the first rows (all that a stream can do), else rows drawn with a fixed seed: many
            collections are sorted by where they come from.

    Raises:
        ValueError: a split that is missing, or has too few rows.
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
    """Train and test of a data set that has train alone: a twentieth of its rows, drawn with a fixed seed, is test. A
    data set of one row has no test."""
    if train.num_rows < 2:
        return {"train": train}
    splits = train.train_test_split(test_size=HELD_OUT_SHARE, seed=SEED)
    _log.warning("%s has no split test: %d rows of train are held out for it", name, splits["test"].num_rows)
    return dict(splits)


def join(sources: Sequence[Source], parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Splits of one name as one split, its rows one data set after the other; with weights, train is a mixture in which
    a row comes from a data set with a probability in proportion to its weight, and which ends where one of them ends.

    Args:
        sources: with weights all, or none.
        parts: the splits of each.
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
    """How many rows there are; None for a stream, which does not know."""
    return getattr(rows, "num_rows", None)


def column_names(rows: Any) -> list[str]:
    """The columns, for a stream that does not know them those of its first row; none if there is no row."""
    return list(rows.column_names or next(iter(rows.take(1)), {}))


def _held_out(train: Any, count: int, in_order: bool) -> tuple[Any, Any]:
    """`count` rows, and the others, each in the order that they had."""
    if in_order:
        return train.take(count), train.skip(count)
    chosen = set(random.Random(SEED).sample(range(train.num_rows), count))
    return train.select(sorted(chosen)), train.select([row for row in range(train.num_rows) if row not in chosen])


def _check_count(name: str, split: str, rows: Any, count: int) -> None:
    present = row_count(rows)
    if present is not None and count > present:
        raise ValueError(f"{name}[{split}:...] must count at most its {present} rows, got {count!r}")
