"""The page of the server: a chat whose answers denoise in place, in one file that asks nobody but its own server."""

from __future__ import annotations

from pathlib import Path

from dllm.chat.page import TEMPLATE as REPLAY
from dllm.chat.page import drawing, embedded, filled

# the header that the page is served with: what it may load, and whom it may ask
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FOLDER = Path(__file__).parent
SCRIPTS = ("stream.js", "film.js", "turn.js", "page.js")  # each uses those before it


def chat_page() -> str:
    """The HTML. It holds the template of the replay, which a browser fills as :func:`dllm.chat.page.replay_page` does.

    Example:
        >>> page = chat_page()
        >>> "{{drawing}}" in page and "</html>" in page  # the first is a place in the replay's template
        True
    """
    values = {
        "style": (FOLDER / "page.css").read_text(encoding="utf-8"),
        "script": "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS),
        "replay": embedded(REPLAY.read_text(encoding="utf-8")),
    }
    return filled((FOLDER / "page.html").read_text(encoding="utf-8"), values | drawing())
