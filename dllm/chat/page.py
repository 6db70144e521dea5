"""A web page that replays the denoising of an answer, in one file that loads nothing else."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from dllm.chat.replay import Replay

TEMPLATE = Path(__file__).with_name("page.html")


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
    # inside <script> only "</" and "<!" can end the data early
    embedded = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    values = {"question": html.escape(replay.question), "data": embedded}
    return re.sub(r"{{(\w+)}}", lambda blank: values[blank[1]], TEMPLATE.read_text(encoding="utf-8"))
