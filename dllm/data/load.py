"""Data sets of conversations and of texts, from files or from the Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dllm.data.columns import features, names_of, row_of
from dllm.data.files import local_path, need_datasets, open_saved, open_source
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
from dllm.data.splits import column_names, held_out, join, row_count, take_counts

if TYPE_CHECKING:
    import datasets


def load_sft_dataset(dataset_args: str, load_preprocessed_data: bool = False) -> datasets.DatasetDict:
    """Conversations in splits, each row with `messages`.

    Args:
        dataset_args: `name[train:5000,test:100]`, several joined by + or |. The name is a file (.json, .jsonl,
            .parquet, .csv, perhaps .gz), a folder with a file for each split (train.jsonl, test.jsonl), a saved data
            set, all of them also under the folder BASE_DATASETS_DIR of the environment; or a name on the Hub. In
            brackets: how many rows of a split are taken, all where it is not named (a test or validation split that is
            not there is held out of train, by a fixed seed); `name:` a part of the data set (a configuration, on the
            Hub); `lang:` the language of its rows; `weight:` its share of a mixture: train then draws its rows from
            the data sets in proportion to their weights, and ends where one of them ends.
        load_preprocessed_data: the names are data sets of samples that `python -m dllm.tools.preprocess_sft_dataset`
            has saved; they come back as they are.

    Rows may be in any format that is published (:mod:`dllm.data.formats`): messages (tulu-3, smoltalk, ultrachat_200k),
    conversations (ShareGPT), instruction and output (alpaca, opc-sft), and others; with `system` and `history`
    (alpaca), `tools`, and what a message has beside its content (`tool_calls`, `reasoning_content`, `weight`, ...). A
    single data set with messages keeps its other columns; where several are joined, calls and tools are JSON. Of
    alpaca, tulu-3 and opc-sft, which have no test split, a twentieth of train becomes it, the same rows as in dLLM 0.1.

    Raises:
        FileNotFoundError, ConnectionError: there is no such data set; the Hub cannot be reached.
        ImportError: the package datasets is not installed.
        ValueError: a specification that cannot be read, a file that is empty or cut off, a split that is missing or
            too small, rows that are no conversations.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "train.jsonl").write_text(json.dumps({"instruction": "Greet.", "output": "Hello"}))
        ...     load_sft_dataset(f"{folder}[train:1]")["train"][0]["messages"][1]["content"]
        'Hello'
    """
    need_datasets()
    import datasets

    sources = read_sources(dataset_args)
    if load_preprocessed_data:
        return datasets.DatasetDict(_saved(sources, streaming=False))
    parts = [_conversations(source) for source in sources]
    every = [rows for part in parts for rows in part.values()]
    names = set().union(*(names_of(rows, conversation_format(rows.column_names)) for rows in every))
    parts = [
        {split: _with_messages(source.name, rows, names, alone=len(sources) == 1) for split, rows in part.items()}
        for source, part in zip(sources, parts, strict=True)
    ]
    return datasets.DatasetDict(join(sources, parts))


def load_pt_dataset(
    dataset_args: str, streaming: bool = True, load_preprocessed_data: bool = False, *, repeat: bool = True
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Texts in splits, their rows as they lie there, with all columns.

    Args:
        dataset_args: as :func:`load_sft_dataset` has it; .txt files too, a row for each paragraph, or with `by:line` or
            `by:document` in brackets for each line or file. A test split that is not there is held out of train: its
            first rows.
        streaming: read rows when they are asked for, instead of all before the first is. A stream does not know how
            many rows it has: a count that is larger takes what there is.
        repeat: a stream's train begins again when it ends, for ever; of no account where `streaming` is False.
        load_preprocessed_data: the names are data sets that `python -m dllm.tools.preprocess_pt_dataset` has saved;
            they come back as they are.

    :func:`~dllm.data.tokens.tokenize_and_group` finds the text in them. Several data sets that do not have the same
    columns are joined as rows with `text` alone, which is their column text, Text, content or raw_content, the first
    that is there.

    Raises:
        As :func:`load_sft_dataset`; ValueError for data sets of several kinds, one of them without text.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "book.txt").write_text("Call me Ishmael.\\n\\nSome years ago")
        ...     next(iter(load_pt_dataset(f"{folder}/book.txt")["train"]))
        {'text': 'Call me Ishmael.'}
    """
    need_datasets()
    import datasets

    sources = read_sources(dataset_args)
    splits = datasets.IterableDatasetDict if streaming else datasets.DatasetDict
    if load_preprocessed_data:
        joined = _saved(sources, streaming=streaming)
    else:
        joined = join(sources, _alike(sources, [_texts(source, streaming) for source in sources]))
    if streaming and repeat and "train" in joined:
        joined["train"] = joined["train"].repeat(None)
    return splits(joined)


def _saved(sources: list[Source], streaming: bool) -> dict[str, Any]:
    parts = []
    for source in sources:
        path = local_path(source.name) or source.name
        parts.append(take_counts(open_saved(path, streaming=streaming), source, in_order=True))
    return join(sources, parts)


def _conversations(source: Source) -> dict[str, Any]:
    """The splits as they are, of which each is known to hold conversations."""
    found = open_source(source)
    if CHAT_SPLITS.keys() & found.keys():
        found = {new: found[old] for old, new in CHAT_SPLITS.items() if old in found}
    if set(found) == {"train"} and source.name.rstrip("/").endswith(WITHOUT_TEST):
        found = held_out(source.name, found["train"])
    kept = take_counts({split: _in_language(source, rows) for split, rows in found.items()}, source, in_order=False)
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
    """Rows with messages; those of several data sets with the features of these names."""
    found, given = conversation_format(rows.column_names), features(names)
    if found.columns == ("messages",) and alone:
        if not set(SYSTEM_COLUMNS) & set(rows.column_names):
            return rows
        return rows.map(lambda row: {"messages": with_system(row, row["messages"])}, desc=f"messages of {name}")
    if rows.features == given:
        return rows

    def read(row: Any, number: int) -> dict[str, Any]:
        try:
            return row_of(row, found, names)
        except ValueError as error:
            raise ValueError(f"row {number} of {name}: {error}") from error

    return rows.map(
        read, with_indices=True, remove_columns=rows.column_names, features=given, desc=f"messages of {name}"
    )


def _texts(source: Source, streaming: bool) -> dict[str, Any]:
    found = {split: _in_language(source, rows) for split, rows in open_source(source, streaming=streaming).items()}
    kept = take_counts(found, source, in_order=True)
    for split, rows in kept.items():
        _check_rows(source.name, split, rows)
        if rows.column_names is None:  # a stream of the package datasets before version 5, which a script may ask
            kept[split] = rows._resolve_features()
    return kept


def _alike(sources: list[Source], parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The splits of several data sets, which have text alone where their columns differ."""
    if len({str(rows.features) for part in parts for rows in part.values()}) <= 1:
        return parts
    return [
        {split: _with_text(source.name, split, rows) for split, rows in part.items()}
        for source, part in zip(sources, parts, strict=True)
    ]


def _with_text(name: str, split: str, rows: Any) -> Any:
    columns = column_names(rows)
    column = text_column(columns)
    if column is None:
        raise ValueError(
            f"rows of {name} must have one of {', '.join(TEXT_COLUMNS)}, got {', '.join(columns)} in {split!r}"
        )
    rows = rows.select_columns([column])
    return rows if column == "text" else rows.rename_column(column, "text")


def _in_language(source: Source, rows: Any) -> Any:
    """The rows that are in the language that the source names."""
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
