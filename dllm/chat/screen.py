"""Input and output of a chat: a terminal, pipes, or one of each."""

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
    """Reads lines, and prints answers and messages.

    Answers go to `out`. Messages go there too if it is a terminal; if it is a file or a pipe, they go to `err`, so that
    `out` holds answers only.

    Args:
        source: lines that are typed or piped in; stdin by default.
        out, err: stdout and stderr by default.

    Attributes:
        messages: where messages and steps are printed: `out` or `err`.
        interactive: whether lines are typed on a terminal.
    """

    def __init__(self, source: TextIO | None = None, out: TextIO | None = None, err: TextIO | None = None):
        self.source = sys.stdin if source is None else source
        self.out = sys.stdout if out is None else out
        self.messages = self.out if self.out.isatty() else (sys.stderr if err is None else err)
        self.interactive = self.source.isatty()
        if self.interactive:
            _edit_lines()

    def read(self) -> str | None:
        """The next line without its line break; None at the end of the input.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            ValueError: the input is not text.
        """
        try:
            if self.interactive and self.source is sys.stdin and self.out is sys.stdout and self.out.isatty():
                return input(PROMPT)
            print(PROMPT if self.interactive else "", end="", file=self.messages, flush=True)
            line = self.source.readline()
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise ValueError(f"expected text as input, got bytes that are none: {error}") from error
        if line and not self.interactive and self.out.isatty():
            self.print_message(f"{PROMPT}{line.rstrip()}")
        return line.rstrip("\r\n") if line else None

    def print_answer(self, text: str) -> None:
        """Print an answer; on a terminal its lines are wrapped."""
        shown = "\n".join(wrapped(text, terminal_width())) if self.out.isatty() else text
        print(shown, file=self.out, flush=True)

    def print_message(self, text: str) -> None:
        """Print something that is not an answer."""
        self._print_colored(text, DIM)

    def print_error(self, text: str) -> None:
        """Print what went wrong."""
        self._print_colored(text, RED)

    def _print_colored(self, text: str, color: str) -> None:
        colored = is_terminal(self.messages) and not os.environ.get("NO_COLOR")
        print(f"{color}{text}{PLAIN}" if colored else text, file=self.messages, flush=True)


def _edit_lines() -> None:
    """Let `input` edit lines and recall earlier ones with the arrow keys, where Python has readline."""
    try:
        importlib.import_module("readline")
    except ImportError:
        return  # Windows, whose console edits lines itself
