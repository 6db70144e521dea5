"""Save the conversation, or the replay of the last answer, as a file."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from dllm.chat.gif import animated
from dllm.chat.page import replay_page
from dllm.chat.replay import Replay
from dllm.chat.talk import Talk

SUFFIXES = (".json", ".html", ".gif")


def save(path: Path, talk: Talk, replay: Replay | None) -> Path:
    """Write a new file and return its path. The suffix chooses the content: .json the conversation with its settings (a
    row that :func:`dllm.data.load_sft_dataset` reads), .html or .gif the replay of the last answer.

    Args:
        path: of the file; an existing file is not overwritten.
        talk: holds the conversation.
        replay: of the last answer; None where its steps were not shown.

    Raises:
        FileExistsError: the file exists.
        ImportError: a .gif needs Pillow, which is not installed.
        OSError: the file cannot be written.
        ValueError: another suffix, or nothing to save.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"expected a file name that ends in {', '.join(SUFFIXES)}, got {path.name!r}")
    if path.exists():
        raise FileExistsError(f"{path} exists, and is left as it is")
    return write(path, _content(path.suffix.lower(), talk, replay))


def write(path: Path, content: bytes) -> Path:
    """Write a file atomically, and return its path.

    Raises:
        OSError: it cannot be written.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"expected a folder to write {path.name} to, there is none at {path.parent}")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _content(suffix: str, talk: Talk, replay: Replay | None) -> bytes:
    if suffix == ".json":
        if not talk.messages:
            raise ValueError("expected a conversation to save, nothing has been said")
        settings = dataclasses.asdict(talk.config) | {"seed": talk.seed}
        return (json.dumps({"messages": talk.messages, "settings": settings}, indent=2) + "\n").encode()
    if replay is None:
        raise ValueError("expected an answer whose steps were shown, there is none to replay")
    if suffix == ".html":
        return replay_page(talk.tokenizer, replay).encode()
    return animated(talk.tokenizer, [replay.frames], titles=[replay.question])
