"""Replays: the GIF's pictures, the page in a real browser, what plays on a terminal."""

from __future__ import annotations

import html
import io
import math
import re
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch

from dllm.chat import gif
from dllm.chat.film import Frame
from dllm.chat.page import replay_page
from dllm.chat.replay import RANKS, Replay
from dllm.chat.tokens import COMMITTED, GIVEN, MASKED, NEW, TENTATIVE
from dllm.chat.visualizers import PageVisualizer, TerminalVisualizer, VideoVisualizer, visualize_histories

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HISTORIES = [
    torch.tensor([[1, 0, 0], [1, 2, 0]]),
    torch.tensor([[1, 2, 0], [1, 2, 0]]),
    torch.tensor([[1, 2, 3], [1, 2, 2]]),
]
FRAMES = [
    Frame([0, 0, 0], [MASKED, MASKED, MASKED], [None, None, None]),
    Frame([1, 2, 0], [NEW, TENTATIVE, MASKED], [math.log(0.9), math.log(0.25), None]),
    Frame([1, 2, 3], [COMMITTED, NEW, NEW], [math.log(0.9), math.log(0.5), math.log(0.75)]),
]
TITLES = ("hello?", " ".join(["hello"] * 8))  # one line, and three


class TestGif:
    Image = pytest.importorskip("PIL.Image")

    def open(self, content: bytes):
        return self.Image.open(io.BytesIO(content))

    def test_every_step_is_a_picture_and_the_last_one_stays(self, words):
        image = self.open(gif.animated(words, [FRAMES], titles=["hello?"], fps=10, hold=3, width=200))
        durations = []
        for n in range(image.n_frames):
            image.seek(n)
            durations.append(image.info["duration"])
        assert durations == [100, 100, 3000]
        assert image.info["loop"] == 0 and image.size[0] == 200

    def test_pictures_show_the_state_of_tokens(self, words):
        """Each state's ink is in the pictures that have such a token, and in no other."""
        image = self.open(gif.animated(words, [FRAMES], titles=[""], width=200))
        found = []
        for n in range(image.n_frames):
            image.seek(n)
            colors = {color for _, color in image.convert("RGB").getcolors(1 << 16)}
            found.append({state for state, ink in gif.INK.items() if state != GIVEN and ink in colors})
        assert found == [set(frame.states) for frame in FRAMES]

    def test_lines_keep_the_width_and_words_their_pieces(self, words):
        """Letters ten wide: 'hello world' does not fit into 100, 'worldly' is not torn apart."""
        frame = Frame([1, 2, 3, 0], [COMMITTED] * 3 + [MASKED], [None] * 4)
        marks = list(gif.layout(words, frame, lambda text: 10.0 * len(text), 100))
        assert [(mark.text, mark.line, mark.x) for mark in marks] == [
            ("hello", 0, 0.0),
            ("world", 1, 0.0),
            ("ly", 1, 50.0),
            (" ·", 1, 70.0),
        ]

    def test_titles_are_shown_whole(self, words):
        wrapped = partial(gif._wrapped, measure=lambda text: 10.0 * len(text), width=100)
        assert wrapped("what is  six\ntimes seven") == ["what is", "six times", "seven"]
        assert wrapped("") == [""] and wrapped("electroencephalogram") == ["electroencephalogram"]
        one, three = (self.open(gif.animated(words, [FRAMES], titles=[title], width=200)).size[1] for title in TITLES)
        assert three - one == 2 * round(1.6 * 20)

    def test_rows_are_one_below_the_other(self, words):
        one = self.open(gif.animated(words, [FRAMES], titles=["a"])).size[1]
        assert self.open(gif.animated(words, [FRAMES] * 2, titles=["a", "b"])).size[1] > 1.5 * one

    @pytest.mark.parametrize(
        ("rows", "options", "rule"),
        [
            ([FRAMES], {"fps": 0}, "fps must be above 0, got 0"),
            ([FRAMES], {"hold": -1}, "hold must be above 0"),
            ([FRAMES], {"width": math.nan}, "width must be above 0"),
            ([FRAMES, FRAMES[:1]], {}, "equally many frames"),
            ([[]], {}, "equally many frames"),
        ],
    )
    def test_what_makes_no_sense(self, words, rows, options, rule):
        with pytest.raises(ValueError, match=rule):
            gif.animated(words, rows, titles=["?"] * len(rows), **options)

    def test_without_pillow(self, words, monkeypatch):
        monkeypatch.setitem(sys.modules, "PIL", None)
        with pytest.raises(ImportError, match=r"pip install 'dllm\[chat\]'"):
            gif.animated(words, [FRAMES], titles=["?"])


class TestVisualizers:
    def test_terminal_plain(self, words, capsys):
        TerminalVisualizer(words).visualize(HISTORIES, rich=False)
        lines = capsys.readouterr().out.splitlines()
        assert lines[:3] == [
            "step 1 of 2: · masked, (tentative), committed",
            "  dllm 1 | hello world ·",
            "  dllm 2 | hello world ·",
        ]
        assert lines[4:] == ["  dllm 1 | hello world ly", "  dllm 2 | hello world world"]

    def test_terminal_live(self, words, monkeypatch):
        out = io.StringIO()
        monkeypatch.setattr(out, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setenv("TERM", "xterm")
        TerminalVisualizer(tokenizer=words).visualize([row[0] for row in HISTORIES], fps=1000, title="steps")
        shown = re.sub(r"\033\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
        assert all(f"step {n} of 2" in shown for n in range(3)) and "hello worldly" in shown and "tokens/s" not in shown

    def test_terminal_leaves_steps_out(self, words, capsys):
        histories = [torch.tensor([0] * 4)] + [torch.tensor([1] * n + [0] * (4 - n)) for n in range(1, 5)]
        TerminalVisualizer(words).visualize(histories, rich=False, every_n_steps=3)
        assert re.findall(r"step (\d)", capsys.readouterr().out) == ["3", "4"]

    def test_terminal_shows_the_beginning(self, words, capsys):
        """As many tokens as end within the characters asked for: " hello" has 6, " world" 6 more."""
        for most, shown in ((5, ""), (6, "hello"), (12, "hello world")):
            TerminalVisualizer(words).visualize([HISTORIES[0][0], HISTORIES[2][0]], rich=False, max_chars=most)
            assert capsys.readouterr().out.splitlines()[-1] == f"  dllm | {shown}"

    def test_the_function_of_scripts(self, words, capsys):
        visualize_histories(words, HISTORIES)
        assert "step 2 of 2" in capsys.readouterr().out

    @pytest.mark.parametrize("options", [{"fps": 0}, {"every_n_steps": 0}, {"max_chars": 0}])
    def test_numbers_that_make_no_sense(self, words, options):
        with pytest.raises(ValueError, match="must be"):
            TerminalVisualizer(words).visualize(HISTORIES, **options)

    def test_video(self, words, tmp_path):
        pytest.importorskip("PIL")
        path = VideoVisualizer(words).visualize(HISTORIES, tmp_path / "steps.gif", fps=4)
        assert path.read_bytes().startswith(b"GIF89a")
        with pytest.raises(ValueError, match=r"must end in \.gif, got 'steps\.mp4'"):
            VideoVisualizer(words).visualize(HISTORIES, tmp_path / "steps.mp4")

    def test_page(self, words, tmp_path):
        page = PageVisualizer(words).visualize(HISTORIES, tmp_path / "steps.html", row=1, title="<steps>").read_text()
        assert "<title>&lt;steps&gt;</title>" in page and '"confidence":[null,null,null]' in page


class TestReplay:
    @pytest.mark.parametrize(
        ("rank", "value", "expected"),
        [
            ("log_prob", math.log(0.25), 0.25),
            ("probability", 0.25, 0.25),
            ("margin", 0.5, 0.5),
            ("neg_entropy", 0.0, 1.0),
        ],
    )
    def test_confidences_lie_between_0_and_1(self, rank, value, expected):
        replay = Replay("?", "!", FRAMES, rank)
        assert replay.confidences(Frame([1], [NEW], [value])) == pytest.approx([expected])

    def test_every_ranking_of_the_samplers_has_words(self):
        from dllm.core.samplers.dream import CONFIDENCE

        assert {*CONFIDENCE.values(), "log_prob", "random"} <= RANKS.keys()


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """What a page becomes in a browser: `browse(page, fragment, script)`; the script runs after the page's."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    folder = tmp_path_factory.mktemp("browser")

    def run(page: str, fragment: str = "", script: str = "") -> str:
        path = folder / "page.html"
        path.write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
        words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
        words += ["--virtual-time-budget=5000", "--dump-dom", f"{path.as_uri()}#{fragment}"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


def tokens(dom: str) -> list[tuple[str, str, str]]:
    """(text without the space before it, state, confidence) of every token on a page."""
    answer = re.search(r'<div class="tokens" id="answer">(.*?)</div>', dom, re.DOTALL)[1]
    spans = re.findall(
        r'<span class="(\w+)" title="[^"]*" data-confidence="([^"]*)"[^>]*>(.*?)</span>', answer, re.DOTALL
    )
    return [(html.unescape(text), state, confidence) for state, confidence, text in spans]


class TestPage:
    NASTY = 'Is "</script><script>document.title = 1</script>" {{data}} & <b>?'

    def page(self, words) -> str:
        return replay_page(words, Replay(self.NASTY, "hello worldly", FRAMES))

    def test_asks_for_nothing_else(self, words):
        page = self.page(words)
        assert "default-src 'none'" in page
        assert not re.search(r"""(src|href)\s*=|url\(|@import|https?:|fetch\(|XMLHttp""", page)

    def test_opens_at_the_last_step(self, words, browse):
        dom = browse(self.page(words))
        assert tokens(dom) == [("hello", "committed", "0.9"), ("world", "new", "0.5"), ("ly", "new", "0.75")]
        assert "step 2 of 2" in dom and 'its <span id="rank">probability</span>' in dom

    def test_text_is_text(self, words, browse):
        dom = browse(self.page(words))
        assert html.unescape(re.search(r"<h1>(.*?)</h1>", dom, re.DOTALL)[1]) == self.NASTY
        assert html.unescape(re.search(r"<title>(.*?)</title>", dom, re.DOTALL)[1]) == self.NASTY

    @pytest.mark.parametrize(
        ("fragment", "script"),
        [
            ("step=1", ""),
            ("", "slider.value = 1; slider.dispatchEvent(new Event('input'));"),
            ("step=2", "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft'}));"),
        ],
    )
    def test_steps(self, words, browse, fragment, script):
        dom = browse(self.page(words), fragment, script)
        assert tokens(dom) == [("hello", "new", "0.9"), ("world", "tentative", "0.25"), ("·", "masked", "null")]
        assert "step 1 of 2" in dom

    def test_plays_from_the_beginning_to_the_end(self, words, browse):
        watch = "const seen = []; const watcher = new MutationObserver(() => seen.push(slider.value));"
        watch += "watcher.observe(answer, {subtree: true, attributeFilter: ['title']});"
        watch += "play.click(); setTimeout(() => { details.textContent = `seen ${seen} ${play.textContent}`; }, 2000);"
        assert "seen 0,1,2 Play" in browse(self.page(words), "", watch)

    def test_confidence_under_the_pointer(self, words, browse):
        point = "answer.children[1].dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));"
        dom = browse(self.page(words), "step=1", point)
        assert 'token 2: " world", tentative, probability 25.0 %' in dom
