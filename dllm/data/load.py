"""Loading data sets of conversations and of texts, from files or from the Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dllm.data.columns import extra_columns, features, unified_row
from dllm.data.files import local_path, open_saved, open_source, require_datasets
from dllm.data.formats import (
    CHAT_SPLITS,
    FORMATS,
    LANGUAGE_COLUMNS,
    SYSTEM_COLUMNS,
    TEXT_COLUMNS,
    WITHOUT_TEST,
    conversation_format,
    text_column,
    with_system,
)
from dllm.data.spec import Source, read_sources
from dllm.data.splits import column_names, held_out, join, row_count, take_row_counts

if TYPE_CHECKING:
    import datasets


def load_sft_dataset(dataset_args: str, load_preprocessed_data: bool = False) -> datasets.DatasetDict:
    """Load conversations by split, each row with `messages`.

    Args:
        dataset_args: `name[train:5000,test:100]`; several are joined by + or |. The name is a file (.json, .jsonl,
            .parquet, .csv, optionally with .gz), a folder with a file per split (train.jsonl, test.jsonl), a saved data
            set, or a name on the Hub. Local names are also looked up under the environment variable BASE_DATASETS_DIR.
            Settings in brackets: `split:count`, the number of rows to take (default: all; a missing test or validation
            split is held out of train with a fixed seed); `name:`, the configuration of the data set; `lang:`, the
            language of its rows; `weight:`, its share of a mixture, in which train draws rows in proportion to the
            weights and ends when one data set ends.
        load_preprocessed_data: load samples that `python -m dllm.tools.preprocess_sft_dataset` has saved, unchanged.

    Rows may have any format of :mod:`dllm.data.formats`: messages (tulu-3, smoltalk, ultrachat_200k), conversations
    (ShareGPT), instruction and output (alpaca, opc-sft), and others; also `system` and `history` (alpaca), `tools`, and
    further fields of messages (`tool_calls`, `reasoning_content`, `weight`, ...). A single data set with messages keeps
    its other columns. If several are joined, tool calls and tools become JSON. alpaca, tulu-3 and opc-sft have no test
    split: 5 % of train is held out, the same rows as in dLLM 0.1.

    Raises:
        FileNotFoundError, ConnectionError: no such data set; the Hub cannot be reached.
        ImportError: the package datasets is not installed.
        ValueError: an invalid specification, an empty or truncated file, a missing split or one with too few rows, rows
            that are not conversations.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "train.jsonl").write_text(json.dumps({"instruction": "Greet.", "output": "Hello"}))
        ...     load_sft_dataset(f"{folder}[train:1]")["train"][0]["messages"][1]["content"]
        'Hello'
    """
    require_datasets()
    import datasets

    sources = read_sources(dataset_args)
    if load_preprocessed_data:
        return datasets.DatasetDict(_saved_splits(sources, streaming=False))
    parts = [_conversations(source) for source in sources]
    every = [rows for part in parts for rows in part.values()]
    names = set().union(*(extra_columns(rows, conversation_format(rows.column_names)) for rows in every))
    parts = [
        {split: _with_messages(source.name, rows, names, alone=len(sources) == 1) for split, rows in part.items()}
        for source, part in zip(sources, parts, strict=True)
    ]
    return datasets.DatasetDict(join(sources, parts))


def load_pt_dataset(
    dataset_args: str, streaming: bool = True, load_preprocessed_data: bool = False, *, repeat: bool = True
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Load texts by split, with all columns.

    Args:
        dataset_args: as for :func:`load_sft_dataset`; also .txt files, with a row per paragraph, or per line or file
            with `by:line` or `by:document` in brackets. A missing test split is held out of train: its first rows.
        streaming: read rows on demand instead of all at first. The number of rows of a stream is unknown: a count above
            it takes all rows.
        load_preprocessed_data: load samples that `python -m dllm.tools.preprocess_pt_dataset` has saved, unchanged.
        repeat: restart the split train of a stream whenever it ends; ignored if `streaming` is False.

    Data sets with different columns are joined with the column `text` alone: the first of text, Text, content and
    raw_content that each has. :func:`~dllm.data.tokens.tokenize_and_group` tokenizes the rows.

    Raises:
        As :func:`load_sft_dataset`; ValueError also if columns differ and a data set has no text column.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "book.txt").write_text("Call me Ishmael.\\n\\nSome years ago")
        ...     next(iter(load_pt_dataset(f"{folder}/book.txt")["train"]))
        {'text': 'Call me Ishmael.'}
    """
    require_datasets()
    import datasets

    sources = read_sources(dataset_args)
    splits = datasets.IterableDatasetDict if streaming else datasets.DatasetDict
    if load_preprocessed_data:
        joined = _saved_splits(sources, streaming=streaming)
    else:
        joined = join(sources, _with_shared_columns(sources, [_texts(source, streaming) for source in sources]))
    if streaming and repeat and "train" in joined:
        joined["train"] = joined["train"].repeat(None)
    return splits(joined)


def _saved_splits(sources: list[Source], streaming: bool) -> dict[str, Any]:
    parts = []
    for source in sources:
        path = local_path(source.name) or source.name
        parts.append(take_row_counts(open_saved(path, streaming=streaming), source, in_order=True))
    return join(sources, parts)


def _conversations(source: Source) -> dict[str, Any]:
    """The splits of one data set, checked to hold conversations, not yet converted."""
    found = open_source(source)
    if CHAT_SPLITS.keys() & found.keys():
        found = {new: found[old] for old, new in CHAT_SPLITS.items() if old in found}
    if set(found) == {"train"} and source.name.rstrip("/").endswith(WITHOUT_TEST):
        found = held_out(source.name, found["train"])
    kept = take_row_counts({split: _in_language(source, rows) for split, rows in found.items()}, source, in_order=False)
    for split, rows in kept.items():
        _check_rows(source.name, split, rows)
        if conversation_format(rows.column_names) is None:
            known = "; ".join(" and ".join(format.columns) for format in FORMATS)
            raise ValueError(
                f"rows of {source.name} must have messages, or columns that become messages ({known}); "
                f"got {', '.join(rows.column_names)} in {split!r}"
            )
    return kept


def _with_messages(name: str, rows: Any, names: set[str], alone: bool) -> Any:
    """Convert rows to `messages`. If several data sets are joined, all get the same features."""
    found, given = conversation_format(rows.column_names), features(names)
    if found.columns == ("messages",) and alone:
        if not set(SYSTEM_COLUMNS) & set(rows.column_names):
            return rows
        return rows.map(lambda row: {"messages": with_system(row, row["messages"])}, desc=f"messages of {name}")
    if rows.features == given:
        return rows

    def read(row: Any, number: int) -> dict[str, Any]:
        try:
            return unified_row(row, found, names)
        except ValueError as error:
            raise ValueError(f"row {number} of {name}: {error}") from error

    return rows.map(
        read, with_indices=True, remove_columns=rows.column_names, features=given, desc=f"messages of {name}"
    )


def _texts(source: Source, streaming: bool) -> dict[str, Any]:
    found = {split: _in_language(source, rows) for split, rows in open_source(source, streaming=streaming).items()}
    kept = take_row_counts(found, source, in_order=True)
    for split, rows in kept.items():
        _check_rows(source.name, split, rows)
        if rows.column_names is None:  # a stream before datasets 5; scripts may read its column names
            kept[split] = rows._resolve_features()
    return kept


def _with_shared_columns(sources: list[Source], parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The splits of several data sets, reduced to the column text if their columns differ."""
    if len({str(rows.features) for part in parts for rows in part.values()}) <= 1:
        return parts
    return [
        {split: _text_only(source.name, split, rows) for split, rows in part.items()}
        for source, part in zip(sources, parts, strict=True)
    ]


def _text_only(name: str, split: str, rows: Any) -> Any:
    columns = column_names(rows)
    column = text_column(columns)
    if column is None:
        raise ValueError(
            f"rows of {name} must have one of {', '.join(TEXT_COLUMNS)}, got {', '.join(columns)} in {split!r}"
        )
    rows = rows.select_columns([column])
    return rows if column == "text" else rows.rename_column(column, "text")


def _in_language(source: Source, rows: Any) -> Any:
    """The rows in the language of the source's `lang:` setting."""
    if source.language is None:
        return rows
    wanted = source.language.lower()
    columns = column_names(rows)
    column = next((column for column in LANGUAGE_COLUMNS if column in columns), None)
    if column is None:
        raise ValueError(
            f"rows of {source.name} must have one of {', '.join(LANGUAGE_COLUMNS)} for lang:, got {', '.join(columns)}"
        )
    return rows.filter(lambda row: str(row[column]).lower() == wanted)


def _check_rows(name: str, split: str, rows: Any) -> None:
    if row_count(rows) == 0 or not column_names(rows):
        raise ValueError(f"{name} must have rows, got none in {split!r}")
