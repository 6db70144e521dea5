"""Messages and tools of a conversation: checking and normalising them for chat templates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]

ROLES = ("tool", "system", "user", "assistant")
# Fields of an assistant's message in addition to its content, or instead of it.
CALLS = ("tool_calls", "function_call")
REASONING = ("reasoning_content", "reasoning", "thinking")


def check_messages(messages: Any) -> list[Message]:
    """Check messages and normalise them for chat templates: content becomes text, None entries are removed, and
    `tool_calls` in JSON become a list.

    Args:
        messages: each {"role": "system", "user", "assistant" or "tool", "content": text}. Content may be a list of
            parts {"type": "text", "text": ...}, whose texts are joined, or None in a message with tool calls. Other
            entries (`reasoning_content`, `tool_calls`, `name`, ...) are kept for the template.

    Raises:
        ValueError: no messages, a message without role or content, an unknown role, content that is not text, a weight
            other than 0 and 1.

    Example:
        >>> check_messages([{"role": "user", "content": [{"type": "text", "text": "Hello"}], "name": None}])
        [{'role': 'user', 'content': 'Hello'}]
    """
    if not messages or isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(f"a row must have a list of messages with at least one in it, got {messages!r}")
    return [_checked(message) for message in messages]


def tools_of(row: Mapping[str, Any]) -> list[Any] | None:
    """The tools in the column `tools` of a row: a list of JSON schemas, or the same list as JSON text. None if empty.

    Raises:
        ValueError: `tools` is neither.

    Example:
        >>> tools_of({"tools": '[{"type": "function", "function": {"name": "add"}}]'})
        [{'type': 'function', 'function': {'name': 'add'}}]
        >>> tools_of({"messages": []}) is None
        True
    """
    tools = _without_none(_from_json("tools", row.get("tools")))
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"tools must be a list of JSON schemas, got {tools!r}")
    return tools


def row_label(row: Mapping[str, Any]) -> str:
    """A label of a row for error messages: the beginning of its first message that is not empty.

    Example:
        >>> row_label({"messages": [{"role": "user", "content": "What is 6 * 7?"}]})
        "the row that begins with 'What is 6 * 7?'"
    """
    messages = row.get("messages")
    listed = messages if isinstance(messages, Sequence) and not isinstance(messages, str) else []
    texts = (message.get("content") if isinstance(message, Mapping) else message for message in listed)
    text = next((text for text in texts if isinstance(text, str) and text.strip()), repr(dict(row)))
    return f"the row that begins with {text[:60]!r}"


def _checked(message: Any) -> Message:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys() | _optional_fields(message):
        raise ValueError(f"a message must have a role and a content, got {message!r}")
    if message["role"] not in ROLES:
        raise ValueError(f"a message's role must be {', '.join(ROLES[:-1])} or {ROLES[-1]}, got {message['role']!r}")
    kept = {name: value for name, value in message.items() if value is not None}
    content = message.get("content")
    kept["content"] = None if content is None and _optional_fields(message) else _text(content)
    if "tool_calls" in kept:
        kept["tool_calls"] = _without_none(_from_json("tool_calls", kept["tool_calls"]))
        if not isinstance(kept["tool_calls"], list):
            raise ValueError(f"a message's tool_calls must be a list, got {kept['tool_calls']!r}")
        if not kept["tool_calls"]:
            del kept["tool_calls"]
    if kept.get("weight", 1) not in (0, 1):
        raise ValueError(f"a message's weight must be 0 or 1, got {kept['weight']!r}")
    if kept["role"] != "assistant":
        kept.pop("weight", None)  # weights apply to answers only
    return kept


def _optional_fields(message: Mapping[str, Any]) -> set[str]:
    """The required fields that a message may lack: content, if it calls tools."""
    return {"content"} if any(message.get(name) for name in CALLS) else set()


def _text(content: Any) -> str:
    if isinstance(content, list) and content:
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
    if not isinstance(content, str):
        raise ValueError(f"a message's content must be text, got {content!r}")
    return content


def _from_json(name: str, value: Any) -> Any:
    if not isinstance(value, str) or not value.strip():
        return value or None
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a list, or one written as JSON, got {value!r}") from error


def _without_none(value: Any) -> Any:
    """Remove None entries, which Arrow adds to give all rows the same fields."""
    if isinstance(value, Mapping):
        return {name: _without_none(each) for name, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list) else value
