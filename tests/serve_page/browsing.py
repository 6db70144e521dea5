"""What tests do on the page, and what they should see there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.serve_page.scripted_server import ANSWER, steps

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'dllm[test]'")
expect = playwright.expect
expect.set_options(timeout=20_000)  # of machines with much else to do

TEXT = "".join(ANSWER).replace("∎", "").strip()
LAST = len(ANSWER)
AT_LAST = f"step {LAST} of {LAST}"


def ask(page: Any, question: str, wait: bool = True, **settings: object) -> Any:
    """Asks with the keyboard, and returns the turn; settings by the id of their fields."""
    if settings:
        page.evaluate("settings.open = true")
        if settings.pop("compare", False):
            page.check("#compare")
        for name, value in settings.items():
            page.fill(f"#{name}", str(value))
    page.fill("#question", question)
    page.press("#question", "Enter")
    turn = page.locator(".turn").last
    if wait:
        expect(turn.locator(".step")).to_have_text(AT_LAST)
        expect(turn.locator(".play")).to_have_text("Play")
    return turn


def tokens(lane: Any) -> list[tuple[str, str]]:
    """(text, state) of every token that is drawn in the first lane of a turn."""
    return [tuple(token) for token in lane.locator(".stage").first.evaluate(
        "stage => [...stage.children].map(token => [token.textContent, token.className])"
    )]  # fmt: skip


def drawn(seed: int, step: int) -> list[tuple[str, str]]:
    """The same, as the server's frames say it."""
    names = {"m": "masked", "t": "tentative", "n": "new", "c": "committed"}
    shown = dict.fromkeys(range(len(ANSWER)), ("·", "masked"))
    for made in list(steps(seed))[:step]:
        frame = made.frame["dllm"]
        columns = frame.get("columns", range(len(ANSWER)))
        for column, piece, state in zip(columns, frame["pieces"], frame["states"], strict=True):
            shown[column] = (piece.removeprefix(" "), names[state] + (" end" if piece == "∎" else ""))
    return [shown[column] for column in range(len(ANSWER))]


def save(page: Any, turn: Any, folder: Path) -> Path:
    """The file of the replay."""
    with page.expect_download() as download:
        turn.locator(".save").click()
    return Path(shutil.copy(download.value.path(), folder / download.value.suggested_filename))
