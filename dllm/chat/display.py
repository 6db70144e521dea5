"""Choose how steps are shown: live panels on a terminal where rich is installed, plain lines of text elsewhere."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import Any, TextIO

from dllm.chat.film import Film
from dllm.chat.view import PlainView, View

_log = logging.getLogger("dllm")


def open_view(
    tokenizer: Any,
    titles: Sequence[str],
    film: Film,
    stream: TextIO,
    *,
    pace: float = 0.0,
    transient: bool = False,
) -> View:
    """The view for a stream: live panels on a terminal where rich is installed, plain lines otherwise.

    Args:
        tokenizer, titles, film: see :class:`View`.
        stream: where to draw.
        pace: least seconds that a live frame stays on the screen.
        transient: erase the live panels at the end.
    """
    if not is_terminal(stream) or not has_rich():
        return PlainView(tokenizer, titles, film, stream)
    from rich.console import Console

    from dllm.chat.live import LiveView

    return LiveView(tokenizer, titles, film, Console(file=stream), pace=pace, transient=transient)


def is_terminal(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that can redraw."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


@functools.cache
def has_rich() -> bool:
    """Whether rich is installed; if not, one warning says that steps are shown as plain lines."""
    found = importlib.util.find_spec("rich") is not None
    if not found:
        _log.warning("rich is not installed, so steps are shown as plain lines: pip install 'dllm[chat]'")
    return found
