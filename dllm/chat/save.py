"""What a chat leaves behind as files: the conversation, or the replay of its last answer."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from dllm.chat.gif import animated
from dllm.chat.page import replay_page
from dllm.chat.replay import Replay
from dllm.chat.talk import Talk

KINDS = (".json", ".html", ".gif")


def save(path: Path, talk: Talk, replay: Replay | None) -> Path:
    """Write a new file; its ending says what: .json the conversation with its settings (each conversation is a row
    that :func:`dllm.data.load_sft_dataset` takes), .html or .gif the replay of the last answer.

    Args:
        path: of the file; none that exists is overwritten.
        talk: what was said.
        replay: of the last answer, None where its steps were not shown.

    Raises:
        FileExistsError: there is such a file.
        ImportError: a .gif needs Pillow, which is not installed.
        OSError: it cannot be written.
        ValueError: another ending, or nothing to save.
    """
    if path.suffix.lower() not in KINDS:
        raise ValueError(f"expected a file name that ends in {', '.join(KINDS)}, got {path.name!r}")
    if path.exists():
        raise FileExistsError(f"{path} exists, and is left as it is")
    return write(path, _content(path.suffix.lower(), talk, replay))


def write(path: Path, content: bytes) -> Path:
    """Write a file, whole or not at all.

    Raises:
        OSError: that is not possible.
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


def _content(kind: str, talk: Talk, replay: Replay | None) -> bytes:
    if kind == ".json":
        if not talk.messages:
            raise ValueError("expected a conversation to save, nothing has been said")
        settings = dataclasses.asdict(talk.config) | {"seed": talk.seed}
        return (json.dumps({"messages": talk.messages, "settings": settings}, indent=2) + "\n").encode()
    if replay is None:
        raise ValueError("expected an answer whose steps were shown, there is none to replay")
    if kind == ".html":
        return replay_page(talk.tokenizer, replay).encode()
    return animated(talk.tokenizer, [replay.frames], titles=[replay.question])
