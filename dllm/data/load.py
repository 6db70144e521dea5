"""Data sets of conversations, from files or from the Hub, and what is left of them at some length."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

    from dllm.configs import DataArguments

# Kinds of files that the package datasets reads.
_FILES = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
_PER_TOKEN = ("input_ids", "labels", "attention_mask", "token_type_ids")
_SETTINGS = re.compile(r"\s*[A-Za-z_]\w*\s*=[^=,\[\]]*(,\s*[A-Za-z_]\w*\s*=[^=,\[\]]*)*")


def parse_spec(text: str) -> tuple[str | None, dict[str, Any]]:
    """A name with settings in brackets, `name[key:value,...]`; or settings alone, `key=value,...`, and no name.

    Raises:
        ValueError: brackets that do not close, or a setting that is none.

    Example:
        >>> parse_spec("name[a:b,train:5000]")
        ('name', {'a': 'b', 'train': 5000})
        >>> parse_spec("a=b,train=5000")
        (None, {'a': 'b', 'train': 5000})
    """
    if _SETTINGS.fullmatch(text):
        return None, _settings(text, text, "=")
    match = re.fullmatch(r"\s*([^\[\]]+?)\s*(?:\[([^\[\]]*)\])?\s*", text)
    if match is None:
        raise ValueError(f"expected name or name[key:value,...], got {text!r}")
    name, inside = match.groups()
    return name, _settings(inside or "", text, ":")


def _settings(listed: str, text: str, sign: str) -> dict[str, Any]:
    settings = {}
    for part in filter(None, (part.strip() for part in listed.split(","))):
        key, separator, value = (piece.strip() for piece in part.partition(sign))
        if not (key and separator and value):
            raise ValueError(f"expected key{sign}value in the settings of {text!r}, got {part!r}")
        settings[key] = int(value) if re.fullmatch(r"\d+(_\d+)*", value) else value
    return settings


def load_sft_dataset(dataset_args: str) -> datasets.DatasetDict:
    """Conversations in splits, each row with `messages`.

    Args:
        dataset_args: `name[train:5000,test:100]`: a folder with a file for each split (train.jsonl, test.jsonl), a
            file, or a name on the Hub; how many rows to take of each split, all of those that are not named; several
            such, joined by + or |, have their splits joined.

    Raises:
        FileNotFoundError: there is no such data set.
        ImportError: the package datasets is not installed.
        ValueError: a specification that cannot be read, a split that is missing or too small, a row without messages.

    Example:
        >>> import json, tempfile
        >>> row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "train.jsonl").write_text(json.dumps(row))
        ...     load_sft_dataset(f"{folder}[train:1]")["train"].num_rows
        1
    """
    if importlib.util.find_spec("datasets") is None:
        raise ImportError("datasets is not installed: pip install 'dllm[train]'")
    import datasets

    parts = [_load_one(*parse_spec(spec)) for spec in re.split(r"[+|]", dataset_args)]
    splits = dict.fromkeys(split for part in parts for split in part)
    return datasets.DatasetDict(
        {split: datasets.concatenate_datasets([part[split] for part in parts if split in part]) for split in splits}
    )


def post_process_dataset(dataset: Any, data_args: DataArguments) -> Any:
    """Samples of at most `data_args.max_length` tokens: longer ones are cut on the right or left out.

    Args:
        dataset: of the package datasets, its rows with `input_ids` and perhaps `labels`.
        data_args: `max_length`, `truncation` and `num_proc`.
    """
    longest = data_args.max_length
    if data_args.truncation == "filter":
        return dataset.filter(lambda row: len(row["input_ids"]) <= longest, num_proc=data_args.num_proc)
    return dataset.map(lambda row: clip_row(row, longest), num_proc=data_args.num_proc)


def clip_row(row: dict[str, Any], max_length: int) -> dict[str, Any]:
    """The row with everything that has an entry per token cut on the right: `input_ids`, `labels`, `attention_mask`,
    `token_type_ids`.

    Example:
        >>> clip_row({"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "prompt_len": 1}, 2)
        {'input_ids': [5, 6], 'labels': [-100, 6], 'prompt_len': 1}
    """
    return {name: value[:max_length] if name in _PER_TOKEN else value for name, value in row.items()}


def _load_one(name: str | None, counts: dict[str, Any]) -> datasets.DatasetDict:
    import datasets

    if name is None:
        raise ValueError(f"expected the name of a data set, got settings alone: {counts}")
    path = Path(name)
    if path.is_file():
        if path.suffix not in _FILES:
            raise ValueError(f"a file of data must be one of {', '.join(_FILES)}, got {name!r}")
        found = datasets.load_dataset(_FILES[path.suffix], data_files=str(path))
    else:
        found = datasets.load_dataset(name)
    for split, count in counts.items():
        if split not in found:
            raise ValueError(f"{name} must have the split {split!r}, got {', '.join(found)}")
        if not isinstance(count, int) or count > found[split].num_rows:
            raise ValueError(f"{name}[{split}:...] must count at most its {found[split].num_rows} rows, got {count!r}")
        found[split] = found[split].select(range(count))
    for split, rows in found.items():
        if "messages" not in rows.column_names:
            raise ValueError(f"rows of {name} must have messages, got {', '.join(rows.column_names)} in {split!r}")
    return found
