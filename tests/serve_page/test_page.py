"""Answers on the page of the server in a real browser: one, two side by side, and the file of a replay."""

from __future__ import annotations

import json
import re

import pytest

from dllm.chat.page import replay_page
from dllm.chat.replay import Replay
from tests.serve_page.browsing import AT_LAST, LAST, TEXT, ask, drawn, expect, save, tokens
from tests.serve_page.scripted_server import steps


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
