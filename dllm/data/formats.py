"""Published formats of conversations and texts, and their conversion to `messages` and `text`.

A format is recognised by the columns, not by the name of the data set, so a local copy is read like the original.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from dllm.data.messages import CALLS, REASONING

Row = Mapping[str, Any]
Messages = list[dict[str, Any]]

# Speakers in ShareGPT and similar formats, and their roles. A function call is written as JSON.
FUNCTION_CALL = "function_call"
_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    FUNCTION_CALL: "assistant",
    "observation": "tool",
    "tool": "tool",
}
# Columns with the text of a system message.
SYSTEM_COLUMNS = ("system", "system_prompt")
# Optional fields of a message, beside role and content.
MESSAGE_FIELDS = (*REASONING, *CALLS, "tool_call_id", "name", "weight")
# Names of the text column, in order of preference. text: wikitext, C4, FineWeb, DCLM and OpenCoder's corpora; Text:
# tiny-shakespeare; content: RefinedWeb and StarCoder; raw_content: RedPajama.
TEXT_COLUMNS = ("text", "Text", "content", "raw_content")
LANGUAGE_COLUMNS = ("lang", "language", "program_lang")
# Splits to use in data sets that also have splits of other content (ultrachat_200k).
CHAT_SPLITS = {"train_sft": "train", "test_sft": "test"}
# Configurations that are loaded, all of them, if the data set requires one and none is named.
DEFAULT_PARTS = {
    "HuggingFaceTB/smoltalk": ("all",),
    "OpenCoder-LLM/opc-sft-stage1": (
        "filtered_infinity_instruct",
        "largescale_diverse_instruct",
        "realuser_instruct",
    ),
    "OpenCoder-LLM/opc-sft-stage2": (
        "educational_instruct",
        "evol_instruct",
        "mceval_instruct",
        "package_instruct",
    ),
    "OpenCoder-LLM/opc-annealing-corpus": ("algorithmic_corpus", "synthetic_code_snippet", "synthetic_qa"),
    "Salesforce/wikitext": ("wikitext-103-raw-v1",),
    "allenai/c4": ("en",),
    "openai/gsm8k": ("main",),
}
# Published without a test split. Like dLLM 0.1, 5 % of train is held out as test.
WITHOUT_TEST = (
    "tatsu-lab/alpaca",
    "allenai/tulu-3-sft-mixture",
    "OpenCoder-LLM/opc-sft-stage1",
    "OpenCoder-LLM/opc-sft-stage2",
)


class Format(NamedTuple):
    """A format of conversations: the columns that identify it, and the function that converts a row to messages."""

    columns: tuple[str, ...]
    read: Callable[[Row], Messages]


def default_parts(name: str) -> tuple[str | None, ...]:
    """The configurations of a data set, or of a copy in a folder of the same name, that are loaded if none is named.

    Example:
        >>> default_parts("copies/HuggingFaceTB/smoltalk"), default_parts("tatsu-lab/alpaca")
        (('all',), (None,))
    """
    ends = name.rstrip("/")
    return next((parts for known, parts in DEFAULT_PARTS.items() if ends.endswith(known)), (None,))


def conversation_format(columns: Iterable[str]) -> Format | None:
    """The format of rows with these columns; None if it is unknown.

    Example:
        >>> alpaca = {"instruction": "Add.", "input": "1, 2", "output": "3"}
        >>> conversation_format(alpaca).read(alpaca)
        [{'role': 'user', 'content': 'Add.\\n\\n1, 2'}, {'role': 'assistant', 'content': '3'}]
    """
    present = set(columns)
    return next((known for known in FORMATS if present.issuperset(known.columns)), None)


def text_column(columns: Iterable[str], wanted: str = "text") -> str | None:
    """The column with the text; None if there is none.

    It is the column `wanted`, or the only one that differs from it in case alone (Text for text). For the default also
    content and raw_content are tried.

    Example:
        >>> text_column(["url", "content"]), text_column(["Poem", "url"], "poem"), text_column(["content"], "poem")
        ('content', 'Poem', None)
    """
    present = list(columns)
    alike = [column for column in present if column.lower() == wanted.lower()]
    if wanted in present or len(alike) == 1:
        return wanted if wanted in present else alike[0]
    return next((column for column in TEXT_COLUMNS if column in present), None) if wanted == "text" else None


def with_system(row: Row, messages: Messages) -> Messages:
    """The messages, preceded by a system message from the column system or system_prompt, if there is one.

    Raises:
        ValueError: the messages begin with a different system message.

    Example:
        >>> with_system({"system": "Be brief."}, [{"role": "user", "content": "Hello"}])[0]
        {'role': 'system', 'content': 'Be brief.'}
    """
    system = next((row[column] for column in SYSTEM_COLUMNS if row.get(column)), None)
    if system is None or not messages:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    if messages[0]["content"] != system:
        raise ValueError(f"a row must have one system message, got {system!r} and {messages[0]['content']!r}")
    return messages


def _messages(row: Row) -> Messages:
    """`messages` (tulu-3, smoltalk, ultrachat_200k), without fields that templates do not read."""
    if not isinstance(row["messages"], (list, tuple)):
        raise ValueError(f"messages must be a list, got {row['messages']!r}")
    return with_system(row, [_message(message, "role", "content") for message in row["messages"]])


def _sharegpt(row: Row) -> Messages:
    """`conversations` of {"from", "value"} (ShareGPT, OpenHermes, Infinity-Instruct), or of role and content."""
    messages = []
    for turn in row["conversations"]:
        message = _message(turn, *(("from", "value") if "from" in turn else ("role", "content")))
        speaker = message["role"]
        if speaker not in _SPEAKERS:
            known = ", ".join(_SPEAKERS)
            raise ValueError(f"a turn of a conversation must be from one of {known}, got {speaker!r}")
        message["role"] = _SPEAKERS[speaker]
        if speaker == FUNCTION_CALL:
            message |= {"content": None, "tool_calls": _calls(message["content"])}
        messages.append(message)
    return with_system(row, messages)


def _calls(text: Any) -> list[dict[str, Any]]:
    """The tool calls in a turn from function_call: JSON of one call or of a list."""
    try:
        found = json.loads(text)
        found = found if isinstance(found, list) else [found]
        return [{"type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}} for c in found]
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError(f"a turn from {FUNCTION_CALL} must be JSON with name and arguments, got {text!r}") from error


def _alternating(row: Row) -> Messages:
    """`data`, a list of texts that alternate between user and assistant (UltraChat)."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(row["data"])]


def _message(message: Any, role: str, content: str) -> dict[str, Any]:
    calls = isinstance(message, Mapping) and any(message.get(name) for name in CALLS)
    if not isinstance(message, Mapping) or role not in message or not (content in message or calls):
        raise ValueError(f"a message must have a {role} and a {content}, got {message!r}")
    more = {name: message[name] for name in MESSAGE_FIELDS if message.get(name) is not None}
    return {"role": message[role], "content": message.get(content), **more}


def _pair(user: str, assistant: str, more: str | None = None) -> Format:
    """The format of one question and its answer, in the columns `user` and `assistant`. `more` is a column whose text
    is appended to the question. Earlier turns may be in the column history, a system message in SYSTEM_COLUMNS."""

    def read(row: Row) -> Messages:
        if isinstance(row[user], list) and isinstance(row[assistant], list):  # both are lists of messages
            return with_system(row, [_message(message, "role", "content") for message in (*row[user], *row[assistant])])
        question = f"{row[user]}\n\n{row[more]}" if more and row.get(more) else row[user]
        messages = []
        for earlier, answer in [*_history(row), (question, row[assistant])]:
            messages += [{"role": "user", "content": earlier}, {"role": "assistant", "content": answer}]
        return with_system(row, messages)

    return Format((user, assistant), read)


def _history(row: Row) -> list[Any]:
    """Earlier turns as pairs of a question and an answer (alpaca as in LLaMA-Factory)."""
    history = row.get("history") or []
    pairs = isinstance(history, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in history)
    if not pairs:
        raise ValueError(f"history must be a list of pairs [question, answer], got {history!r}")
    return history


FORMATS = (
    Format(("messages",), _messages),
    Format(("conversations",), _sharegpt),
    _pair("instruction", "output", more="input"),  # alpaca, opc-sft-stage1 and -stage2
    _pair("instruction", "response", more="context"),  # dolly
    _pair("question", "response"),  # OpenOrca
    _pair("question", "answer"),  # gsm8k
    _pair("query", "response"),  # MetaMathQA
    _pair("prompt", "response"),
    _pair("prompt", "completion"),
    _pair("problem", "solution"),  # NuminaMath
    Format(("data",), _alternating),
)
