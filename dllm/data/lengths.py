"""Limiting the length of samples: longer ones are truncated or left out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dllm.configs import DataArguments

_log = logging.getLogger("dllm")

# Columns with one entry per token.
PER_TOKEN = ("input_ids", "labels", "attention_mask", "token_type_ids", "position_ids")


def clip_row(row: dict[str, Any], max_length: int, truncation: str = "right") -> dict[str, Any]:
    """Truncate all columns of a row that have one entry per token: `input_ids`, `labels`, `attention_mask`,
    `token_type_ids`, `position_ids`.

    Args:
        row: values by column.
        max_length: number of entries to keep, at least 1.
        truncation: the side that is cut, "right" or "left".

    Raises:
        ValueError: `max_length` below 1, or an unknown side.

    Example:
        >>> clip_row({"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "prompt_len": 1}, 2)
        {'input_ids': [5, 6], 'labels': [-100, 6], 'prompt_len': 1}
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    if truncation not in ("right", "left"):
        raise ValueError(f"truncation of a row must be right or left, got {truncation!r}")
    kept = slice(max_length) if truncation == "right" else slice(-max_length, None)
    return {name: value[kept] if name in PER_TOKEN else value for name, value in row.items()}


def post_process_dataset(dataset: Any, data_args: DataArguments) -> Any:
    """Limit samples to `data_args.max_length` tokens: longer ones are truncated on the right or left out.

    Samples without any label are left out, too: those of which only the prompt would be left, and those whose answers
    all have weight 0. The number of samples that are cut or left out is logged.

    Args:
        dataset: a `datasets.Dataset` or `DatasetDict` with `input_ids` and optionally `labels` and `prompt_len`.
        data_args: `max_length`, `truncation` ("right" or "filter") and `num_proc`.

    Example:
        >>> import datasets
        >>> from dllm.configs import DataArguments
        >>> samples = datasets.Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "prompt_len": 1}])
        >>> post_process_dataset(samples, DataArguments(max_length=2, num_proc=1))[0]["labels"]
        [-100, 6]
    """
    if isinstance(dataset, Mapping):
        return type(dataset)({split: _limited(rows, data_args, split) for split, rows in dataset.items()})
    return _limited(dataset, data_args, "the data")


def _limited(rows: Any, data_args: DataArguments, name: str) -> Any:
    longest, workers = data_args.max_length, data_args.num_proc
    fits = _fits if data_args.truncation == "filter" else _has_labels_left
    kept = rows.filter(lambda row: fits(row, longest), num_proc=workers, desc="samples to learn from")
    if out := len(rows) - len(kept):
        why = "nothing of them would be learnt"
        why += "" if fits is _has_labels_left else f" or have more than max_length = {longest} tokens"
        _log.warning("%d of %d samples of %s are left out: %s", out, len(rows), name, why)
    if fits is _fits or not (cut := sum(length > longest for length in _lengths(kept))):
        return kept
    _log.warning("%d of %d samples of %s are cut to max_length = %d tokens", cut, len(kept), name, longest)
    return kept.map(lambda row: clip_row(row, longest), num_proc=workers, desc="cut to length")


def _lengths(rows: Any) -> Iterator[int]:
    """The number of tokens of each sample."""
    import pyarrow.compute as pc

    for batch in rows.select_columns("input_ids").with_format("arrow").iter(batch_size=10_000):
        yield from pc.list_value_length(batch["input_ids"]).to_pylist()


def clip_row_streaming(row: dict[str, Any], max_length: int, truncation: str = "right") -> dict[str, Any]:
    """:func:`clip_row` under a second name, for streams; kept for scripts.

    Example:
        >>> clip_row_streaming({"input_ids": [5, 6, 7]}, 2, truncation="left")
        {'input_ids': [6, 7]}
    """
    return clip_row(row, max_length, truncation)


def post_process_dataset_streaming(dataset: Any, data_args: DataArguments) -> Any:
    """:func:`post_process_dataset` for an IterableDataset or IterableDatasetDict: rows are cut or left out as they are
    read.

    Example:
        >>> import datasets
        >>> from dllm.configs import DataArguments
        >>> samples = datasets.Dataset.from_list([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}]).to_iterable_dataset()
        >>> list(post_process_dataset_streaming(samples, DataArguments(max_length=2, truncation="filter")))
        [{'input_ids': [8]}]
    """
    longest = data_args.max_length
    if data_args.truncation == "filter":
        return dataset.filter(lambda row: _fits(row, longest))
    return dataset.filter(lambda row: _has_labels_left(row, longest)).map(lambda row: clip_row_streaming(row, longest))


def _fits(row: dict[str, Any], longest: int) -> bool:
    return len(row["input_ids"]) <= longest and _has_labels_left(row, longest)


def _has_labels_left(row: dict[str, Any], longest: int) -> bool:
    """Whether a sample has more than its prompt after truncation."""
    prompt = row.get("prompt_len")
    return prompt is None or prompt < min(longest, len(row["input_ids"]))
