"""Data sets of prompts, for reinforcement learning: the model answers, and rewards score the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dllm.data.files import open_source, require_datasets
from dllm.data.messages import Message, check_messages
from dllm.data.spec import Source, read_sources
from dllm.data.splits import join, row_count, take_row_counts

# Names of arguments that a reward gets besides the columns.
RESERVED = ("completions", "prompts")


def load_prompt_dataset(dataset_args: str) -> Any:
    """Load prompts by split, each row with `prompt`, a list of messages, and with all its other columns.

    Args:
        dataset_args: as for :func:`dllm.data.load.load_sft_dataset`: `name[train:5000,test:100]`, several joined by +
            or |; a file (.json, .jsonl, .parquet, .csv), a folder, a saved data set, or a name on the Hub.

    Rows have `prompt`, a text or a list of messages, or `messages`, whose last message, if it is the assistant's, is
    left out: it is the model's turn. Rewards get the other columns by name; data sets that are joined have the same.

    Returns:
        A `datasets.DatasetDict`.

    Raises:
        FileNotFoundError, ConnectionError, ImportError: as :func:`dllm.data.load.load_sft_dataset`.
        ValueError: an invalid specification, rows without `prompt` and `messages`, an empty prompt, a prompt that ends
            with the assistant's turn, a column `completions` or `prompts`, or data sets with different columns.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "train.jsonl").write_text(json.dumps({"prompt": "6 * 7 = ?", "answer": "42"}))
        ...     load_prompt_dataset(folder)["train"][0]
        {'prompt': [{'role': 'user', 'content': '6 * 7 = ?'}], 'answer': '42'}
    """
    require_datasets()
    import datasets

    sources = read_sources(dataset_args)
    parts = [_prompts(source) for source in sources]
    columns = {
        tuple(sorted(rows.column_names)): source.name
        for source, part in zip(sources, parts, strict=True)
        for rows in part.values()
    }
    if len(columns) > 1:
        told = "; ".join(f"{name}: {', '.join(names)}" for names, name in columns.items())
        raise ValueError(f"data sets of prompts that are joined must have the same columns, got {told}")
    return datasets.DatasetDict(join(sources, parts))


def prompt_messages(row: Mapping[str, Any]) -> list[Message]:
    """The prompt of a row as messages.

    Raises:
        ValueError: there is none, it is empty, or it ends with the assistant's turn.

    Example:
        >>> talk = [{"role": "user", "content": "6 * 7 = ?"}, {"role": "assistant", "content": "42"}]
        >>> prompt_messages({"messages": talk}) == prompt_messages({"prompt": "6 * 7 = ?"}) == talk[:1]
        True
    """
    if "prompt" in row:
        prompt = row["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        messages = check_messages(messages)
    else:
        messages = check_messages(row["messages"])
        messages = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not messages or messages[-1]["role"] == "assistant" or not messages[-1]["content"].strip():
        raise ValueError(
            f"a prompt must end with a turn that is not the assistant's and not empty, got {dict(row)!r:.200}"
        )
    return messages


def with_prompts(name: str, rows: Any) -> Any:
    """The rows of a `datasets.Dataset` with `prompt` as messages, in place of a text or of `messages`.

    Raises:
        ValueError: as :func:`load_prompt_dataset`, naming the row.
    """
    columns = rows.column_names
    if not {"prompt", "messages"} & set(columns):
        raise ValueError(f"rows of {name} must have prompt or messages, got {', '.join(columns)}")
    if taken := set(RESERVED) & set(columns):
        raise ValueError(f"rows of {name} must have no column {taken.pop()}: rewards get an argument of this name")

    def read(row: Any, number: int) -> dict[str, Any]:
        try:
            messages = prompt_messages(row)
        except ValueError as error:
            raise ValueError(f"row {number} of {name}: {error}") from error
        return {"prompt": [{"role": each["role"], "content": each["content"]} for each in messages]}

    removed = "prompt" if "prompt" in columns else "messages"
    return rows.map(read, with_indices=True, remove_columns=[removed], desc=f"prompts of {name}")


def _prompts(source: Source) -> dict[str, Any]:
    found = take_row_counts(open_source(source), source, in_order=False)
    for split, rows in found.items():
        if not row_count(rows):
            raise ValueError(f"{source.name} must have rows, got none in {split!r}")
    return {split: with_prompts(source.name, rows) for split, rows in found.items()}
