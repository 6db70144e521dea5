"""Plain text for a terminal: banners, boxes, wrapped lines, a menu."""

from __future__ import annotations

import shutil
import textwrap

CHOICES = ("1", "2", "3")


def terminal_width() -> int:
    """Width of the terminal in columns; 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def banner_line(text: str, width: int = 80, fill: str = "=") -> str:
    """`text` centered in a line of `width` columns.

    Example:
        >>> banner_line("chat", width=12)
        '=== chat ==='
    """
    return f" {text} ".center(width, fill)


def boxed(text: str, width: int = 80) -> str:
    """`text` in a box of at most `width` columns; longer lines are wrapped.

    Example:
        >>> print(boxed("Hello"))
        ╭───────╮
        │ Hello │
        ╰───────╯
    """
    lines = wrapped(text, width - 4)
    inner = max(map(len, lines))
    rows = [f"│ {line.ljust(inner)} │" for line in lines]
    edge = "─" * (inner + 2)
    return "\n".join([f"╭{edge}╮", *rows, f"╰{edge}╯"])


def wrapped(text: str, width: int = 80) -> list[str]:
    """Lines of at most `width` columns, broken between words; line breaks and indents of the text are kept.

    Example:
        >>> wrapped("one two three", 8)
        ['one two', 'three']
    """
    return [
        piece
        for line in text.split("\n")
        for piece in textwrap.wrap(line, max(width, 1), replace_whitespace=False) or [""]
    ]


def print_wrapped(text: str, width: int = 80) -> None:
    """Print `text`, wrapped as by :func:`wrapped`."""
    print("\n".join(wrapped(text, width)))


def render_menu(round_idx: int) -> str:
    """A menu for scripts that ask after every round what to do next; :func:`prompt_choice` reads the choice.

    Args:
        round_idx: rounds so far; at 0 there is no conversation to continue.

    Example:
        >>> print(render_menu(0))
        ╭───────────────╮
        │ 1. Start      │
        │ 2. Start anew │
        │ 3. Leave      │
        ╰───────────────╯
    """
    first = f"Go on (round {round_idx + 1})" if round_idx else "Start"
    return boxed(f"1. {first}\n2. Start anew\n3. Leave")


def prompt_choice() -> str:
    """Ask until the answer is "1", "2" or "3", and return it.

    Raises:
        EOFError: the input has ended.
    """
    while (choice := input("1, 2 or 3? ").strip()) not in CHOICES:
        print(f"expected 1, 2 or 3, got {choice!r}")
    return choice
