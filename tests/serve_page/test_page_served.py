"""The page before the real server, and before one that is full, slow, broken or gone."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve_page.browsing import AT_LAST, ask, drawn, expect, tokens
from tests.serve_page.scripted_server import KEY


@pytest.fixture(scope="module")
def live() -> Iterator[Any]:
    """The real server, a gate before the forwards of its model."""
    pytest.importorskip("fastapi", reason="needs FastAPI, which needs Python 3.11")
    from tests import live_server

    model, tokenizer = live_server.load_shipped()
    gate = live_server.Gate(model)
    with live_server.served(live_server.engine_of(model, tokenizer)) as server:
        server.gate, server.until = gate, live_server.until
        yield server
        gate.open()


class TestServed:
    """The bundled model behind the real server."""

    def test_shows_what_the_api_says(self, visit, live):
        page = visit(at=live.url)
        turn = ask(page, "What is 6 * 7?", wait=False, seed=3, temperature=0.7)
        expect(turn.locator(".facts")).to_contain_text("seed 3")
        body = {"messages": [{"role": "user", "content": "What is 6 * 7?"}], "seed": 3, "temperature": 0.7}
        asked = urllib.request.Request(
            f"{live.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        answer = json.load(urllib.request.urlopen(asked, timeout=60))
        text, forwards = answer["choices"][0]["message"]["content"], answer["choices"][0]["dllm"]["forwards"]
        assert text and turn.locator(".said").text_content() == text
        expect(turn.locator(".step")).to_have_text(f"step {forwards} of {forwards}")
        turn.locator(".slider").fill("0")
        assert {state for _, state in tokens(turn)} == {"masked"}
        turn.locator(".slider").fill(str(forwards))
        drawn = "".join(piece for piece, state in tokens(turn) if "end" not in state)
        assert drawn == text.replace(" ", "")
        assert {state.split()[0] for _, state in tokens(turn)} == {"new", "committed"}

    def test_a_stopped_row_leaves_the_model(self, visit, live):
        page = visit(at=live.url)
        live.gate.close()
        ask(page, "What is 6 * 7?", wait=False)
        assert live.gate.entered.wait(30)
        page.click("#stop")
        live.until(lambda: b'dllm_cancelled_total{why="disconnect"} 1.0' in live.metrics.text())
        live.gate.open()
        live.until(lambda: live.batcher.running == 0)


class TestTrouble:
    def test_a_full_server_says_when_to_come_again(self, page):
        turn = ask(page, "full", wait=False)
        expect(turn.locator(".fault")).to_have_text("The server has no room right now. It asks to wait 2 s.")
        expect(turn.locator(".remedies button")).to_have_text("Try again (in 1 s)")
        turn.locator(".remedies button").click()
        expect(turn.locator(".step")).to_have_text(AT_LAST)
        assert turn.locator(".fault").text_content() == ""

    def test_a_key_is_asked_for_and_kept_in_memory_only(self, visit, server):
        server.locked = True
        page = visit()
        expect(page.locator("#model")).to_contain_text("wants an API key")
        turn = ask(page, "?", wait=False)
        expect(turn.locator(".fault")).to_contain_text("wants an API key")
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        expect(turn.locator(".step")).to_have_text(AT_LAST)
        expect(page.locator("#model")).to_contain_text("tiny-model")
        kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
        assert KEY not in kept and "%20" not in kept
        page.reload()
        assert page.input_value("#key") == ""

    @pytest.mark.parametrize(
        ("question", "words"),
        [("break", "The connection was lost."), ("fail", "the forward pass raised"), ("going", "going down")],
    )
    def test_a_stream_that_breaks_keeps_what_came(self, page, question, words):
        turn = ask(page, question, wait=False, seed=7)
        expect(turn.locator(".fault")).to_contain_text(words)
        expect(turn.locator(".step")).to_have_text("step 4 of 4")
        assert tokens(turn) == drawn(7, 4) and turn.locator(".remedies button").is_visible()

    def test_a_server_that_has_gone(self, page):
        page.route("**/v1/chat/completions", lambda route: route.abort())
        expect(ask(page, "?", wait=False).locator(".fault")).to_have_text("The server does not answer. Is it running?")

    def test_a_server_that_falls_silent(self, visit, server):
        page = visit(locale="en-GB")
        page.clock.install()
        page.route("**/v1/chat/completions", lambda route: None)
        page.evaluate("""() => { window.fetch = async () => new Response(new ReadableStream({})); }""")
        turn = ask(page, "?", wait=False)
        page.clock.fast_forward(59_000)
        assert turn.locator(".fault").text_content() == ""
        page.clock.fast_forward(2_000)
        expect(turn.locator(".fault")).to_contain_text("fallen silent")

    def test_a_conversation_that_is_too_long_goes_on_without_its_beginning(self, page, server):
        ask(page, "one")
        turn = ask(page, "long", wait=False)
        expect(turn.locator(".fault")).to_have_text("240 positions asked for, 192 there are")
        turn.get_by_role("button", name="Ask without the earlier questions").click()
        expect(turn.locator(".step")).to_have_text(AT_LAST)
        expect(turn.locator(".forgotten")).to_be_visible()
        ask(page, "three")
        assert [m["content"] for m in server.bodies[-1]["messages"] if m["role"] == "user"] == ["long", "three"]

    def test_settings_that_make_no_sense_are_not_sent(self, page, server):
        ask(page, "?", wait=False, temperature=-1)
        assert not server.bodies and page.locator("#temperature:invalid").count() == 1
