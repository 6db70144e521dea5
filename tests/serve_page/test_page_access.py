"""The page for everybody: by keyboard, with a screen reader, on small screens, without motion, in the dark."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serve_page.browsing import AT_LAST, LAST, TEXT, ask, expect, save

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs pip install 'dllm[test]'")


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
