"""Formats that conversations and texts are published in, and what they become: `messages`, and `text`.

A data set is known by its columns, not by its name, so that a copy of it on disk is read as it is from the Hub.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]
Messages = list[dict[str, str]]

# Who speaks, in the words of ShareGPT and its kin.
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
}
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


def text_column(columns: Iterable[str]) -> str | None:
    """The column that holds running text, None if there is none.

    Example:
        >>> text_column(["url", "content"])
        'content'
    """
    present = set(columns)
    return next((column for column in TEXT_COLUMNS if column in present), None)


def _plain(row: Row) -> Messages:
    """`messages` (tulu-3, smoltalk, ultrachat_200k), without what else is noted of a message."""
    if not isinstance(row["messages"], (list, tuple)):
        raise ValueError(f"messages must be a list, got {row['messages']!r}")
    return [_said(message, "role", "content") for message in row["messages"]]


def _sharegpt(row: Row) -> Messages:
    """`conversations` of {"from", "value"} (ShareGPT, OpenHermes, Infinity-Instruct), or of role and content."""
    messages = [
        _said(turn, *(("from", "value") if "from" in turn else ("role", "content"))) for turn in row["conversations"]
    ]
    for message in messages:
        if message["role"] not in _SPEAKERS:
            known = ", ".join(_SPEAKERS)
            raise ValueError(f"a turn of a conversation must be from one of {known}, got {message['role']!r}")
        message["role"] = _SPEAKERS[message["role"]]
    opening = row.get("system_prompt") or row.get("system")
    if opening and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": opening})
    return messages


def _alternating(row: Row) -> Messages:
    """`data`, a list of texts, the user's and the assistant's in turn (UltraChat)."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(row["data"])]


def _said(message: Any, role: str, content: str) -> dict[str, str]:
    if not isinstance(message, Mapping) or not {role, content} <= message.keys():
        raise ValueError(f"a message must have a {role} and a {content}, got {message!r}")
    return {"role": message[role], "content": message[content]}


def _pair(user: str, assistant: str, more: str | None = None, system: str | None = None) -> Format:
    """One question and its answer; `more` is a column that the question goes on in, where it is not empty."""

    def read(row: Row) -> Messages:
        opening = [{"role": "system", "content": row[system]}] if system and row.get(system) else []
        question = f"{row[user]}\n\n{row[more]}" if more and row.get(more) else row[user]
        return [*opening, {"role": "user", "content": question}, {"role": "assistant", "content": row[assistant]}]

    return Format((user, assistant), read)


FORMATS = (
    Format(("messages",), _plain),
    Format(("conversations",), _sharegpt),
    _pair("instruction", "output", more="input"),  # alpaca, opc-sft-stage1 and -stage2
    _pair("instruction", "response", more="context"),  # dolly
    _pair("question", "response", system="system_prompt"),  # OpenOrca
    _pair("question", "answer"),  # gsm8k
    _pair("query", "response"),  # MetaMathQA
    _pair("prompt", "response"),
    _pair("prompt", "completion"),
    _pair("problem", "solution"),  # NuminaMath
    Format(("data",), _alternating),
)
