"""The columns of conversations that come from several formats: the same for all of them, whatever their rows have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from dllm.data.formats import CALLER, MORE, Format
from dllm.data.messages import CALLS, check_messages, tools_of

TOOLS = "tools"


def names_of(rows: Any, found: Format) -> set[str]:
    """What rows have beside roles and contents: names of :data:`dllm.data.formats.MORE`, and tools.

    Args:
        rows: a data set of the package datasets.
        found: its format.
    """
    names = {TOOLS} & set(rows.column_names)
    for column in found.columns:
        inner = rows.features[column]
        inner = inner[0] if isinstance(inner, list) else getattr(inner, "feature", None)
        if isinstance(inner, Mapping):
            names |= set(MORE) & set(inner)
            callers = _values(rows, column, "from") if "from" in inner else set()
        elif type(inner).__name__ == "Json":  # of datasets 5, where messages have different entries
            turns = [turn for row in rows.select_columns(column) for turn in row[column] if isinstance(turn, Mapping)]
            names |= {name for turn in turns for name in MORE if turn.get(name) is not None}
            callers = {turn.get("from") for turn in turns}
        else:
            continue
        names |= {"tool_calls"} if CALLER in callers else set()
    return names


def features(names: Iterable[str]) -> Any:
    """The features of rows with `messages`, and `tools` where that is one of the names. Calls and tools are JSON.

    Example:
        >>> sorted(features({"weight", "tools"}))
        ['messages', 'tools']
    """
    import datasets

    text = datasets.Value("string")
    message = {"role": text, "content": text}
    message |= {name: datasets.Value("float64") if name == "weight" else text for name in MORE if name in set(names)}
    return datasets.Features({"messages": [message]} | ({TOOLS: text} if TOOLS in set(names) else {}))


def row_of(row: Mapping[str, Any], found: Format, names: Iterable[str]) -> dict[str, Any]:
    """A row of any format, as the features of these names have it.

    Raises:
        ValueError: it is no conversation.
    """
    names, made = set(names), []
    for message in check_messages(found.read(row)):
        more = {name: _flat(name, message.get(name)) for name in MORE if name in names}
        made.append({"role": message["role"], "content": message["content"], **more})
    return {"messages": made} | ({TOOLS: _flat(TOOLS, tools_of(row))} if TOOLS in names else {})


def _flat(name: str, value: Any) -> Any:
    return json.dumps(value) if name in (*CALLS, TOOLS) and value is not None else value


def _values(rows: Any, column: str, field: str) -> set[Any]:
    """All values of a field of the dicts in a column of lists."""
    import pyarrow.compute as pc

    return set(pc.unique(pc.struct_field(pc.list_flatten(rows.data.column(column)), [field])).to_pylist())
