"""The commands of a chat: lines that begin with a slash, such as "/steps 32"."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from dllm.chat.exchange import Exchange
from dllm.chat.save import save
from dllm.fast.sampling.inputs import row_seeds


class Command(NamedTuple):
    """One command.

    argument: its argument as shown by /help; empty where it takes none.
    help: what it does.
    run: carries it out, given the chat and the text of the argument.
    """

    argument: str
    help: str
    run: Callable[[Exchange, str], None]


class Quit(Exception):
    """Raised by /quit: the chat ends."""


def run_command(chat: Exchange, line: str) -> None:
    """Run the command in a line such as "/steps 32".

    Raises:
        Quit: the command is /quit.
        ValueError, OSError, ImportError: there is no such command, or it failed and changed nothing.
    """
    name, _, rest = line[1:].partition(" ")
    command = COMMANDS.get(name.lower())
    if command is None:
        near = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
        hint = f"did you mean /{near[0]}?" if near else "/help lists the commands"
        raise ValueError(f"there is no command /{name}: {hint}")
    if rest.strip() and not command.argument:
        raise ValueError(f"/{name} takes nothing behind it, got {rest.strip()!r}")
    command.run(chat, rest.strip())


def help_text() -> str:
    """All commands, one line each."""
    usage = {f"/{name} {command.argument}".rstrip(): command.help for name, command in COMMANDS.items()}
    width = max(map(len, usage))
    return "\n".join(f"{text.ljust(width)}  {explained}" for text, explained in usage.items())


def _reset(chat: Exchange, _: str) -> None:
    chat.talk.reset()
    chat.screen.print_message("a new conversation")


def _history(chat: Exchange, _: str) -> None:
    lines = [f"{message['role']}: {message['content']}" for message in chat.talk.messages]
    chat.screen.print_message("\n".join(lines) or "nothing has been said")


def _save(chat: Exchange, name: str) -> None:
    if not name:
        raise ValueError("/save takes a file name, such as talk.json, answer.html or answer.gif")
    chat.screen.print_message(f"written: {save(Path(name).expanduser(), chat.talk, chat.replay)}")


def _seed(chat: Exchange, text: str) -> None:
    if text:
        seed = _parse("seed", int, "none", text)
        row_seeds(seed, 1, torch.device("cpu"))  # raises if it does not fit 64 bits
        chat.talk.seed = seed
    chat.screen.print_message(f"seed {'none' if chat.talk.seed is None else chat.talk.seed}")


def _quit(chat: Exchange, _: str) -> None:
    raise Quit


def _setting(
    name: str, field: str, number: type[int] | type[float], word_for_none: str | None = None
) -> Callable[[Exchange, str], None]:
    """The `run` of a command that shows a setting of the sampler, or changes it where a value is given."""

    def run(chat: Exchange, text: str) -> None:
        if text:
            chat.talk.set(**{field: _parse(name, number, word_for_none, text)})
        value = chat.talk.setting(field)
        chat.screen.print_message(f"{name} {word_for_none if value is None else value}")

    return run


def _parse(name: str, number: type[int] | type[float], word_for_none: str | None, text: str) -> int | float | None:
    if word_for_none is not None and text == word_for_none:
        return None
    try:
        return number(text)
    except ValueError as error:
        kind = "a whole number" if number is int else "a number"
        allowed = f"{kind} or {word_for_none}" if word_for_none else kind
        raise ValueError(f"/{name} takes {allowed}, got {text!r}") from error


COMMANDS = {
    "reset": Command("", "start a new conversation; settings stay", _reset),
    "retry": Command("", "ask the last question again", lambda chat, _: chat.retry()),
    "history": Command("", "show the conversation", _history),
    "seed": Command("N", "seed of the noise; none draws a new one for each answer", _seed),
    "steps": Command("N", "denoising steps of an answer", _setting("steps", "steps", int)),
    "block": Command("N", "tokens per block; all for one block", _setting("block", "block_size", int, "all")),
    "length": Command("N", "maximum number of tokens of an answer", _setting("length", "max_new_tokens", int)),
    "temperature": Command("T", "0 takes the most likely token", _setting("temperature", "temperature", float)),
    "save": Command("FILE", "save talk.json, or the last answer's steps as answer.html or answer.gif", _save),
    "help": Command("", "show this list", lambda chat, _: chat.screen.print_message(help_text())),
    "quit": Command("", "end the chat (so does Ctrl-D)", _quit),
}
