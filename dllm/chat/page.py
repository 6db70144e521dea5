"""A web page that replays the denoising of an answer, in one file that loads nothing else."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dllm.chat.replay import Replay

TEMPLATE = Path(__file__).with_name("page.html")
DRAWING = {  # what draws the tokens, by the names of its places in a page
    "drawing_style": Path(__file__).with_name("drawing.css"),
    "drawing": Path(__file__).with_name("drawing.js"),
}


def filled(template: str, values: Mapping[str, str]) -> str:
    """A page: the template with each `{{name}}` replaced by the value of that name; values are not searched again.

    Raises:
        KeyError: no value for a name.

    Example:
        >>> filled("<b>{{word}}</b>", {"word": "{{name}}"})
        '<b>{{name}}</b>'
    """
    return re.sub(r"{{(\w+)}}", lambda blank: values[blank[1]], template)


def drawing() -> dict[str, str]:
    """The style and the script that draw the tokens of a step, by the names of their places in a page."""
    return {name: path.read_text(encoding="utf-8") for name, path in DRAWING.items()}


def embedded(value: Any) -> str:
    """JSON for the inside of a `<script>`, which only "</" and "<!" can end early.

    Example:
        >>> embedded("</script>")
        '"\\\\u003c/script>"'
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def replay_page(tokenizer: Any, replay: Replay) -> str:
    """The HTML: a slider over the steps, play and pause; a token's confidence is its shade and is shown on hover.

    Arrow keys step, the space bar plays; `#step=12` at the end of the address opens the page at that step.

    Args:
        tokenizer: decodes the frames' token ids.
        replay: the frames to show.

    Example:
        >>> from dllm.chat.film import Film
        >>> from dllm.demo.shipped import load_shipped
        >>> film = Film(0, [slice(0, 1)])
        >>> "<title>6 * 7?</title>" in replay_page(load_shipped()[1], Replay("6 * 7?", "42", film.rows[0]))
        True
    """
    data = {"rank": replay.rank_name, "answer": replay.answer, "scenes": replay.scenes(tokenizer)}
    values = {"question": html.escape(replay.question), "data": embedded(data)}
    return filled(TEMPLATE.read_text(encoding="utf-8"), values | drawing())
