"""Common columns for conversations that are read from different formats, so that they can be joined."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from dllm.data.formats import FUNCTION_CALL, MESSAGE_FIELDS, Format
from dllm.data.messages import CALLS, check_messages, tools_of

TOOLS = "tools"


def extra_columns(rows: Any, found: Format) -> set[str]:
    """Message fields that rows have beside role and content (:data:`dllm.data.formats.MESSAGE_FIELDS`), and `tools`.

    Args:
        rows: a `datasets.Dataset`.
        found: its format.
    """
    names = {TOOLS} & set(rows.column_names)
    for column in found.columns:
        inner = rows.features[column]
        inner = inner[0] if isinstance(inner, list) else getattr(inner, "feature", None)
        if isinstance(inner, Mapping):
            names |= set(MESSAGE_FIELDS) & set(inner)
            callers = _values(rows, column, "from") if "from" in inner else set()
        elif type(inner).__name__ == "Json":  # datasets 5, if the messages have different fields
            turns = [turn for row in rows.select_columns(column) for turn in row[column] if isinstance(turn, Mapping)]
            names |= {name for turn in turns for name in MESSAGE_FIELDS if turn.get(name) is not None}
            callers = {turn.get("from") for turn in turns}
        else:
            continue
        names |= {"tool_calls"} if FUNCTION_CALL in callers else set()
    return names


def features(names: Iterable[str]) -> Any:
    """The features of rows with `messages` of these fields, and with `tools` if named. Tool calls and tools are JSON.

    Example:
        >>> sorted(features({"weight", "tools"}))
        ['messages', 'tools']
    """
    import datasets

    text = datasets.Value("string")
    message = {"role": text, "content": text}
    message |= {
        name: datasets.Value("float64") if name == "weight" else text for name in MESSAGE_FIELDS if name in set(names)
    }
    return datasets.Features({"messages": [message]} | ({TOOLS: text} if TOOLS in set(names) else {}))


def unified_row(row: Mapping[str, Any], found: Format, names: Iterable[str]) -> dict[str, Any]:
    """Convert a row of any format to the features of :func:`features`.

    Raises:
        ValueError: the row is not a conversation.
    """
    names, made = set(names), []
    for message in check_messages(found.read(row)):
        more = {name: _to_json(name, message.get(name)) for name in MESSAGE_FIELDS if name in names}
        made.append({"role": message["role"], "content": message["content"], **more})
    return {"messages": made} | ({TOOLS: _to_json(TOOLS, tools_of(row))} if TOOLS in names else {})


def _to_json(name: str, value: Any) -> Any:
    return json.dumps(value) if name in (*CALLS, TOOLS) and value is not None else value


def _values(rows: Any, column: str, field: str) -> set[Any]:
    """The distinct values of a field, in a column of lists of dicts."""
    import pyarrow.compute as pc

    return set(pc.unique(pc.struct_field(pc.list_flatten(rows.data.column(column)), [field])).to_pylist())
