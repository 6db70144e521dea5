"""The page of the server in a real browser, before a server that answers by script."""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dllm.chat.page import replay_page
from dllm.chat.replay import Replay
from tests.serve_page.scripted_server import ANSWER, KEY, ScriptedServer, steps

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'dllm[test]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs pip install 'dllm[test]'")
expect = playwright.expect
expect.set_options(timeout=20_000)  # of machines with much else to do

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TEXT = "".join(ANSWER).replace("∎", "").strip()
LAST = len(ANSWER)
AT_LAST = f"step {LAST} of {LAST}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running_server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def server(running_server) -> ScriptedServer:
    running_server.fresh()
    return running_server


@pytest.fixture(scope="module")
def tab(browser) -> Any:
    """A page with a browser's usual options: a new one for each test would take half of all the time."""
    return browser.new_context().new_page()


@pytest.fixture
def visit(browser, tab, server) -> Iterator[Any]:
    """Opens the page, with options in a tab of its own. At the end: no script failed, no other host was asked."""
    opened, hosts, asked, errors = [], [], [], []
    events = {
        "request": lambda request: asked.append(request.url),
        "pageerror": lambda error: errors.append(str(error)),
        "console": lambda message: errors.append(message.text) if "Policy" in message.text else None,
    }

    def visit(at: str = server.address, **options: Any) -> Any:
        page = browser.new_context(**options).new_page() if options else tab
        opened.append(page)
        for event, heard in events.items():
            page.on(event, heard)
        page.goto(at)
        hosts.append(at)
        return page

    yield visit
    for page in opened:
        page.unroute_all()
        if page is not tab:
            page.context.close()
    for event, heard in events.items():
        if tab in opened:
            tab.remove_listener(event, heard)
    assert not errors
    assert asked and all(url.startswith((*hosts, "blob:", "file:")) for url in asked)


@pytest.fixture
def page(visit) -> Any:
    return visit()


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


class TestAnswer:
    def test_takes_shape_and_comes_to_its_end(self, page, server):
        turn = ask(page, "What is six times seven?", seed=7, steps=12, temperature=0.5, max_tokens=24)
        assert tokens(turn) == drawn(7, LAST)
        assert turn.locator(".said").text_content() == TEXT
        assert turn.locator(".facts").text_content() == "seed 7 · 12 tokens · 12 forward passes · 0.25 s"
        (body,) = server.bodies
        assert body == {
            "model": "tiny-model", "messages": [{"role": "user", "content": "What is six times seven?"}], "seed": 7,
            "steps": 12, "temperature": 0.5, "max_tokens": 24, "stream": True,
            "stream_options": {"include_usage": True}, "denoise": True,
        }  # fmt: skip

    def test_settings_that_are_left_empty_are_the_servers(self, page, server):
        turn = ask(page, "?")
        assert server.bodies[0].keys() == {"model", "messages", "stream", "stream_options", "denoise"}
        assert "seed 4711" in turn.locator(".facts").text_content()
        assert page.get_attribute("#steps", "placeholder") == "12"

    def test_each_step_can_be_had_again(self, page):
        turn = ask(page, "?", seed=3)
        for step in (0, 1, 5, LAST):
            turn.locator(".slider").fill(str(step))
            assert tokens(turn) == drawn(3, step)
        last = list(steps(3))[-1].frame["dllm"]
        known = last["confidence"][last["states"].index("n")]
        assert turn.locator(".stage .new").get_attribute("title").endswith(f", new, confidence {100 * known:.1f} %")

    def test_characters_and_lines_may_arrive_in_pieces(self, page):
        """Seven bytes at a time, lines that end with a carriage return and a line feed."""
        turn = ask(page, "pieces", seed=5)
        assert tokens(turn) == drawn(5, LAST) and turn.locator(".said").text_content() == TEXT

    @pytest.mark.parametrize("size", [1, 2, 3, 1000])
    def test_events_are_the_same_however_their_bytes_are_cut(self, page, size):
        """Each kind of line end, an event of two lines, comments, characters of two and four bytes."""
        sent = 'data: {"a": "ä🌊"}\r\n\r\n: ping\n\ndata: one\r\ndata:two\r\n\r\n'
        sent += "id: 5\ndata: three\r\rdata: cut"
        read = """async ([bytes, size]) => {
            const stream = new ReadableStream({ start(controller) {
                const array = new Uint8Array(bytes);
                for (let i = 0; i < array.length; i += size) controller.enqueue(array.slice(i, i + size));
                controller.close();
            }});
            const found = [], signal = new AbortController().signal;
            for await (const data of events(new Response(stream), signal)) found.push(data);
            return found;
        }"""
        assert page.evaluate(read, [list(sent.encode()), size]) == ['{"a": "ä🌊"}', "one\ntwo", "three"]

    def test_pause_and_play_while_it_comes(self, page, server):
        turn = ask(page, "hold", wait=False, seed=7)
        expect(turn.locator(".step")).to_have_text(f"step 4 of {LAST}")
        turn.locator(".play").click()
        server.open(5, 9)
        expect(page.locator("#send")).to_be_visible()
        assert tokens(turn) == drawn(7, 4)
        turn.locator(".play").click()
        expect(turn.locator(".step")).to_have_text(AT_LAST)
        assert tokens(turn) == drawn(7, LAST)

    def test_stop_leaves_the_server_and_keeps_what_came(self, page, server):
        turn = ask(page, "hold", wait=False, seed=7)
        expect(turn.locator(".step")).to_have_text(f"step 4 of {LAST}")
        page.click("#stop")
        assert server.left.wait(10)
        expect(turn.locator(".facts")).to_have_text("stopped")
        expect(page.locator("#question")).to_be_focused()
        assert tokens(turn) == drawn(7, 4)
        ask(page, "next")
        assert [message["content"] for message in server.bodies[-1]["messages"]] == ["next"]

    def test_escape_stops(self, page, server):
        ask(page, "hold", wait=False)
        expect(page.locator("#stop")).to_be_visible()
        page.keyboard.press("Escape")
        assert server.left.wait(10)
        expect(page.locator("#send")).to_be_visible()

    def test_a_conversation(self, page, server):
        ask(page, "one")
        ask(page, "two")
        assert server.bodies[1]["messages"] == [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": TEXT},
            {"role": "user", "content": "two"},
        ]
        page.click("#fresh")
        ask(page, "three")
        assert page.locator(".turn").count() == 1 and len(server.bodies[2]["messages"]) == 1

    def test_without_frames_the_text_is_shown(self, page):
        turn = ask(page, "blind", wait=False)
        expect(turn.locator(".stage")).to_have_text(TEXT)
        expect(turn.locator(".facts")).to_contain_text("seed 4711")
        assert not turn.locator(".save").is_visible() and not turn.locator(".controls").is_visible()

    def test_text_is_text(self, page):
        nasty = "<img src=x onerror=alert(1)> {{data}} </script>"
        assert ask(page, nasty).locator(".question").text_content() == nasty

    def test_an_answer_that_was_cut_off_says_so(self, page):
        expect(ask(page, "cut").locator(".facts")).to_contain_text("cut off at max tokens")


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


class TestTwoSeeds:
    def test_side_by_side_under_one_slider(self, page, server):
        turn = ask(page, "?", seed=7, compare=True, seed2=8)
        assert sorted(body["seed"] for body in server.bodies) == [7, 8]
        turn.locator(".slider").fill("6")
        lanes = turn.locator(".lane").all()
        assert [tokens(lane) for lane in lanes] == [drawn(7, 6), drawn(8, 6)]
        boxes = [lane.locator(".stage").bounding_box() for lane in lanes]
        assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]
        assert boxes[0]["height"] == boxes[1]["height"]

    def test_one_may_be_slower_than_the_other(self, page, server):
        turn = ask(page, "hold 8", wait=False, seed=7, compare=True, seed2=8)
        expect(turn.locator(".step")).to_have_text(AT_LAST)
        slow = turn.locator(".lane").last
        for step in (4, 8):
            expect(slow.locator(".words")).to_contain_text(f"{step} of {LAST} tokens kept")
            assert tokens(turn) == drawn(7, LAST) and tokens(slow) == drawn(8, step)
            server.open(step + 1)
        expect(turn.locator(".play")).to_have_text("Play")
        assert tokens(slow) == drawn(8, LAST)

    def test_the_conversation_goes_on_from_the_one_that_is_chosen(self, page, server):
        """One of both was refused: its text is not part of the conversation, until the other is chosen."""
        turn = ask(page, "full", seed=7, compare=True, seed2=8)
        fine = turn.locator(".lane", has_not_text="no room")
        fine.locator(".continue").click()
        assert turn.locator(".continue[aria-pressed=true]").count() == 1
        page.uncheck("#compare")
        ask(page, "next")
        assert len(server.bodies[-1]["messages"]) == 3

    def test_the_same_seed_twice_is_no_comparison(self, page, server):
        ask(page, "?", wait=False, seed=7, compare=True, seed2=7)
        assert not server.bodies and page.locator("#seed2:invalid").count() == 1


def save(page: Any, turn: Any, folder: Path) -> Path:
    """The file of the replay."""
    with page.expect_download() as download:
        turn.locator(".save").click()
    return Path(shutil.copy(download.value.path(), folder / download.value.suggested_filename))


class TestReplay:
    def test_is_the_file_that_the_terminal_saves(self, page, tmp_path):
        question = 'What\'s <six> & "seven"?'
        path = save(page, ask(page, question, seed=7), tmp_path)
        assert path.name == "dllm-replay-seed-7.html"
        saved, ours = path.read_text(encoding="utf-8"), replay_page(None, Replay(question, TEXT, []))
        data = re.compile(r'(<script type="application/json" id="data">)(.*?)(</script>)', re.DOTALL)
        assert data.sub(r"\1\3", saved) == data.sub(r"\1\3", ours)
        content = json.loads(data.search(saved)[2])
        assert content.keys() == json.loads(data.search(ours)[2]).keys()
        assert content["answer"] == TEXT and len(content["scenes"]) == LAST + 1
        assert [piece.removeprefix(" ") for piece in content["scenes"][4]["pieces"]] == [t for t, _ in drawn(7, 4)]
        page.goto(f"{path.as_uri()}#step=4")
        shown = page.evaluate("[...answer.children].map(token => [token.textContent, token.className])")
        assert [tuple(token) for token in shown] == drawn(7, 4)


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


class TestForEverybody:
    def test_by_keyboard_alone(self, page):
        """Ask, scrub, look at a token, and get back, with Tab, arrows, Space and Enter."""

        def focused() -> str:
            return page.evaluate("document.activeElement.className || document.activeElement.id")

        page.keyboard.type("?")
        page.keyboard.press("Enter")
        expect(page.locator(".step")).to_have_text(AT_LAST)
        seen = []
        page.locator("#fresh").focus()
        for _ in range(9):
            page.keyboard.press("Tab")
            seen.append(focused())
            ring = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
            assert ring == "2px", f"no visible focus on {seen[-1]}"
            if seen[-1] == "slider":
                page.keyboard.press("Home")
                assert page.locator(".step").text_content() == f"step 0 of {LAST}"
            if seen[-1] == "closer":
                page.keyboard.press("Enter")
            if seen[-1] == "which":
                page.keyboard.press("ArrowRight")
                assert page.locator(".token").text_content() == 'token 2: " ·", masked'
                assert page.locator(".stage .looked-at").count() == 1
            if seen[-1] == "question":
                break
        assert seen == ["play", "slider", "closer", "save", "which", "question"]

    def test_only_committed_text_is_spoken(self, page, server):
        page.evaluate(
            """() => { window.spoken = [];
            new MutationObserver(changes => changes.forEach(({target, addedNodes}) => addedNodes.forEach(node => {
                if (target.closest?.("[aria-live]")) spoken.push(node.textContent);
            }))).observe(document.body, {subtree: true, childList: true}); }"""
        )
        turn = ask(page, "?", seed=7)
        spoken = page.evaluate("spoken")
        assert "".join(spoken) == TEXT and all(part.endswith(".") for part in spoken)
        assert turn.locator(".said").get_attribute("aria-live") == "polite"
        assert turn.locator(".stage").get_attribute("aria-hidden") == "true"

    def test_every_eighth_step_where_motion_is_unwelcome(self, visit):
        page = visit(reduced_motion="reduce")
        page.evaluate(
            """() => { window.seen = [];
            new MutationObserver(() => seen.push(document.querySelector(".step")?.value))
              .observe(document.getElementById("turns"), {subtree: true, attributeFilter: ["title"]}); }"""
        )
        turn = ask(page, "?", seed=7)
        shown = {int(words.split()[1]) for words in page.evaluate("seen")}
        assert shown <= {0, 8, LAST} and LAST in shown
        page.evaluate("seen.length = 0")
        turn.locator(".play").click()
        expect(turn.locator(".play")).to_have_text("Pause")
        expect(turn.locator(".play")).to_have_text("Play")
        assert {int(words.split()[1]) for words in page.evaluate("seen")} == {0, 8, LAST}

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_nothing(self, visit, server, scheme):
        page = visit(color_scheme=scheme, reduced_motion="reduce")
        assert self.faults(page) == []
        turn = ask(page, "?", seed=7, compare=True, seed2=8)
        turn.locator(".slider").fill("5")
        turn.locator(".closer").first.click()
        page.uncheck("#compare")
        ask(page, "full", wait=False)
        expect(page.locator(".fault").last).to_contain_text("no room")
        assert self.faults(page) == []

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_nothing_in_a_replay(self, visit, tmp_path, scheme):
        page = visit(color_scheme=scheme)
        page.goto(f"{save(page, ask(page, '?'), tmp_path).as_uri()}#step=5")
        assert self.faults(page) == []

    def faults(self, page: Any) -> list[str]:
        """What axe-core finds, in words; tokens in their final colors."""
        page.wait_for_timeout(250)
        found = axe.Axe().run(page).response
        return [f"{fault['id']}: {node['html']}" for fault in found["violations"] for node in fault["nodes"]]

    def test_narrow(self, visit):
        page = visit(viewport={"width": 320, "height": 640})
        turn = ask(page, "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch", seed=7, compare=True, seed2=8)
        turn.locator(".closer").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        out = "[...document.querySelectorAll('button, input, textarea, .stage')].filter(e => e.checkVisibility() && "
        assert (
            page.evaluate(out + "(e.getBoundingClientRect().right > 320 || e.getBoundingClientRect().left < 0)).length")
            == 0
        )
