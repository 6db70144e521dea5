"""Formats that conversations and texts are published in, and what they become: `messages`, and `text`.

A data set is known by its columns, not by its name, so that a copy of it on disk is read as it is from the Hub.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from dllm.data.messages import CALLS, REASONING

Row = Mapping[str, Any]
Messages = list[dict[str, Any]]

# Who speaks, in the words of ShareGPT and its kin. What calls a function is written as JSON.
CALLER = "function_call"
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
    CALLER: "assistant",
    "observation": "tool",
    "tool": "tool",
}
# Columns with what a system message says.
SYSTEM_COLUMNS = ("system", "system_prompt")
# What a message may have beside its role and its content.
MORE = (*REASONING, *CALLS, "tool_call_id", "name", "weight")
# Where the running text of a data set is, the first that it has: wikitext, C4, FineWeb, DCLM and OpenCoder's corpora
# call it text, tiny-shakespeare Text, RefinedWeb and StarCoder content, RedPajama raw_content.
TEXT_COLUMNS = ("text", "Text", "content", "raw_content")
LANGUAGE_COLUMNS = ("lang", "language", "program_lang")
# Splits that hold conversations where a data set has others beside them (ultrachat_200k).
CHAT_SPLITS = {"train_sft": "train", "test_sft": "test"}
# Parts that are taken, all of them, where a data set must be told which and none is named.
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
# Published without a test split; dLLM 0.1 holds a twentieth of train out of them.
WITHOUT_TEST = (
    "tatsu-lab/alpaca",
    "allenai/tulu-3-sft-mixture",
    "OpenCoder-LLM/opc-sft-stage1",
    "OpenCoder-LLM/opc-sft-stage2",
)


class Format(NamedTuple):
    """Columns that a row must have, and the messages that are made of it."""

    columns: tuple[str, ...]
    read: Callable[[Row], Messages]


def default_parts(name: str) -> tuple[str | None, ...]:
    """The parts of a data set, or of a copy of it in a folder of the same name, that are taken when none is named.

    Example:
        >>> default_parts("copies/HuggingFaceTB/smoltalk"), default_parts("tatsu-lab/alpaca")
        (('all',), (None,))
    """
    ends = name.rstrip("/")
    return next((parts for known, parts in DEFAULT_PARTS.items() if ends.endswith(known)), (None,))


def conversation_format(columns: Iterable[str]) -> Format | None:
    """How rows with these columns become messages, None if they do not.

    Example:
        >>> alpaca = {"instruction": "Add.", "input": "1, 2", "output": "3"}
        >>> conversation_format(alpaca).read(alpaca)
        [{'role': 'user', 'content': 'Add.\\n\\n1, 2'}, {'role': 'assistant', 'content': '3'}]
    """
    present = set(columns)
    return next((known for known in FORMATS if present.issuperset(known.columns)), None)


def text_column(columns: Iterable[str], wanted: str = "text") -> str | None:
    """The column that holds running text, None if there is none: the one called `wanted`, in other letters (Text for
    text) if there is one such only; for the default also what else text is called, content or raw_content.

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
    """The messages, and before them what a column of the row, system or system_prompt, says.

    Raises:
        ValueError: the messages begin with another system message.

    Example:
        >>> with_system({"system": "Be brief."}, [{"role": "user", "content": "Hello"}])[0]
        {'role': 'system', 'content': 'Be brief.'}
    """
    said = next((row[column] for column in SYSTEM_COLUMNS if row.get(column)), None)
    if said is None or not messages:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": said}, *messages]
    if messages[0]["content"] != said:
        raise ValueError(f"a row must have one system message, got {said!r} and {messages[0]['content']!r}")
    return messages


def _plain(row: Row) -> Messages:
    """`messages` (tulu-3, smoltalk, ultrachat_200k), without notes that no template reads."""
    if not isinstance(row["messages"], (list, tuple)):
        raise ValueError(f"messages must be a list, got {row['messages']!r}")
    return with_system(row, [_said(message, "role", "content") for message in row["messages"]])


def _sharegpt(row: Row) -> Messages:
    """`conversations` of {"from", "value"} (ShareGPT, OpenHermes, Infinity-Instruct), or of role and content."""
    messages = []
    for turn in row["conversations"]:
        message = _said(turn, *(("from", "value") if "from" in turn else ("role", "content")))
        speaker = message["role"]
        if speaker not in _SPEAKERS:
            known = ", ".join(_SPEAKERS)
            raise ValueError(f"a turn of a conversation must be from one of {known}, got {speaker!r}")
        message["role"] = _SPEAKERS[speaker]
        if speaker == CALLER:
            message |= {"content": None, "tool_calls": _calls(message["content"])}
        messages.append(message)
    return with_system(row, messages)


def _calls(text: Any) -> list[dict[str, Any]]:
    """The calls that a turn from function_call writes as JSON: one, or a list of them."""
    try:
        found = json.loads(text)
        found = found if isinstance(found, list) else [found]
        return [{"type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}} for c in found]
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError(f"a turn from {CALLER} must be JSON with name and arguments, got {text!r}") from error


def _alternating(row: Row) -> Messages:
    """`data`, a list of texts, the user's and the assistant's in turn (UltraChat)."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(row["data"])]


def _said(message: Any, role: str, content: str) -> dict[str, Any]:
    calls = isinstance(message, Mapping) and any(message.get(name) for name in CALLS)
    if not isinstance(message, Mapping) or role not in message or not (content in message or calls):
        raise ValueError(f"a message must have a {role} and a {content}, got {message!r}")
    more = {name: message[name] for name in MORE if message.get(name) is not None}
    return {"role": message[role], "content": message.get(content), **more}


def _pair(user: str, assistant: str, more: str | None = None) -> Format:
    """One question and its answer; `more` is a column that the question goes on in, where it is not empty. Earlier
    questions and answers may stand in the column history, what a system message says in one of SYSTEM_COLUMNS."""

    def read(row: Row) -> Messages:
        if isinstance(row[user], list) and isinstance(row[assistant], list):  # messages, both of them
            return with_system(row, [_said(message, "role", "content") for message in (*row[user], *row[assistant])])
        question = f"{row[user]}\n\n{row[more]}" if more and row.get(more) else row[user]
        asked = []
        for earlier, answer in [*_history(row), (question, row[assistant])]:
            asked += [{"role": "user", "content": earlier}, {"role": "assistant", "content": answer}]
        return with_system(row, asked)

    return Format((user, assistant), read)


def _history(row: Row) -> list[Any]:
    """Earlier turns, as alpaca has them in LLaMA-Factory: pairs of a question and an answer."""
    history = row.get("history") or []
    pairs = isinstance(history, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in history)
    if not pairs:
        raise ValueError(f"history must be a list of pairs [question, answer], got {history!r}")
    return history


FORMATS = (
    Format(("messages",), _plain),
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
