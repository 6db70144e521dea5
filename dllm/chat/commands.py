"""What can be typed besides questions: lines that begin with a slash."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from dllm.chat.save import save
from dllm.fast.sampling.inputs import row_seeds

if TYPE_CHECKING:
    from dllm.chat.session import Session


class Command(NamedTuple):
    """What a command takes, what it does, in words and as a function of the session and the text behind it."""

    takes: str
    does: str
    run: Callable[[Session, str], None]


class Leave(Exception):
    """The chat is over."""


def run_command(session: Session, line: str) -> None:
    """Carry out a line such as "/steps 32".

    Raises:
        Leave: the line says so.
        ValueError, OSError, ImportError: no such command, or it does not work; nothing has changed.
    """
    name, _, rest = line[1:].partition(" ")
    command = COMMANDS.get(name.lower())
    if command is None:
        near = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
        hint = f"did you mean /{near[0]}?" if near else "/help lists the commands"
        raise ValueError(f"there is no command /{name}: {hint}")
    if rest.strip() and not command.takes:
        raise ValueError(f"/{name} takes nothing behind it, got {rest.strip()!r}")
    command.run(session, rest.strip())


def help_text() -> str:
    """All commands, a line each."""
    usage = {f"/{name} {command.takes}".rstrip(): command.does for name, command in COMMANDS.items()}
    width = max(map(len, usage))
    return "\n".join(f"{text.ljust(width)}  {does}" for text, does in usage.items())


def _reset(session: Session, _: str) -> None:
    session.talk.reset()
    session.screen.note("a new conversation")


def _history(session: Session, _: str) -> None:
    said = [f"{message['role']}: {message['content']}" for message in session.talk.messages]
    session.screen.note("\n".join(said) or "nothing has been said")


def _save(session: Session, name: str) -> None:
    if not name:
        raise ValueError("/save takes a file name, such as talk.json, answer.html or answer.gif")
    session.screen.note(f"written: {save(Path(name).expanduser(), session.talk, session.replay)}")


def _seed(session: Session, text: str) -> None:
    if text:
        seed = _parse("seed", int, "none", text)
        row_seeds(seed, 1, torch.device("cpu"))  # refuses what does not fit
        session.talk.seed = seed
    session.screen.note(f"seed {'none' if session.talk.seed is None else session.talk.seed}")


def _leave(session: Session, _: str) -> None:
    raise Leave


def _setting(name: str, field: str, number: type[int] | type[float], none: str | None = None) -> Callable:
    """A command that shows a setting of the sampler, or changes it."""

    def run(session: Session, text: str) -> None:
        if text:
            session.talk.set(**{field: _parse(name, number, none, text)})
        value = session.talk.setting(field)
        session.screen.note(f"{name} {none if value is None else value}")

    return run


def _parse(name: str, number: type[int] | type[float], none: str | None, text: str) -> int | float | None:
    if none is not None and text == none:
        return None
    try:
        return number(text)
    except ValueError as error:
        kind = "a whole number" if number is int else "a number"
        raise ValueError(f"/{name} takes {kind}{f' or {none}' if none else ''}, got {text!r}") from error


COMMANDS = {
    "reset": Command("", "start a new conversation; settings stay", _reset),
    "retry": Command("", "ask the last question again", lambda session, _: session.retry()),
    "history": Command("", "show the conversation", _history),
    "seed": Command("N", "of the noise, none for another one each time", _seed),
    "steps": Command("N", "denoising steps of an answer", _setting("steps", "steps", int)),
    "block": Command("N", "tokens of a block, all for one block", _setting("block", "block_size", int, "all")),
    "length": Command("N", "tokens of an answer, at most", _setting("length", "max_new_tokens", int)),
    "temperature": Command("T", "0 takes the likeliest token", _setting("temperature", "temperature", float)),
    "save": Command("FILE", "talk.json, or the last answer's steps: answer.html, answer.gif", _save),
    "help": Command("", "this list", lambda session, _: session.screen.note(help_text())),
    "quit": Command("", "leave (Ctrl-D does, too)", _leave),
}
