"""Where a chat is read from and written to: a terminal, pipes, or one of each."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TextIO

from dllm.chat.display import is_terminal
from dllm.chat.text import terminal_width, wrapped

PROMPT = "you > "
DIM, RED, PLAIN = "\033[2m", "\033[31m", "\033[0m"


class Screen:
    """Answers go to `out`. So does everything else on a terminal; where `out` is a file or a pipe, all else goes to
    `err`, so that the answers stand alone.

    Args:
        source: lines that are typed or piped in; stdin by default.
        out, err: stdout and stderr by default.
    """

    def __init__(self, source: TextIO | None = None, out: TextIO | None = None, err: TextIO | None = None):
        self.source = sys.stdin if source is None else source
        self.out = sys.stdout if out is None else out
        self.aside = self.out if self.out.isatty() else (sys.stderr if err is None else err)
        self.interactive = self.source.isatty()
        if self.interactive:
            _edit_lines()

    def read(self) -> str | None:
        """The next line without its end; None when there are no more.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            ValueError: what comes in is no text.
        """
        try:
            if self.interactive and self.source is sys.stdin and self.out is sys.stdout and self.out.isatty():
                return input(PROMPT)
            print(PROMPT if self.interactive else "", end="", file=self.aside, flush=True)
            line = self.source.readline()
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise ValueError(f"expected text as input, got bytes that are none: {error}") from error
        if line and not self.interactive and self.out.isatty():
            self.note(f"{PROMPT}{line.rstrip()}")
        return line.rstrip("\r\n") if line else None

    def say(self, text: str) -> None:
        """Write an answer."""
        shown = "\n".join(wrapped(text, terminal_width())) if self.out.isatty() else text
        print(shown, file=self.out, flush=True)

    def note(self, text: str) -> None:
        """Write something that is no answer."""
        self._aside(text, DIM)

    def complain(self, text: str) -> None:
        """Write that something did not work."""
        self._aside(text, RED)

    def _aside(self, text: str, color: str) -> None:
        colored = is_terminal(self.aside) and not os.environ.get("NO_COLOR")
        print(f"{color}{text}{PLAIN}" if colored else text, file=self.aside, flush=True)


def _edit_lines() -> None:
    """Arrow keys move in a line and through earlier ones, where Python has readline."""
    try:
        importlib.import_module("readline")
    except ImportError:
        return  # Windows: its console edits lines itself
