"""Whole chats: lines in, answers out, commands, mistakes, interruptions; through pipes and through a real terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import sys
import time
from pathlib import Path

import pytest

from dllm.chat import session as sessions
from dllm.chat.commands import COMMANDS
from dllm.chat.screen import Screen
from dllm.chat.session import Session
from dllm.chat.talk import Continuation, Conversation
from dllm.core.samplers import EntropyBoundSampler
from tests import programs

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]


class Typed(io.StringIO):
    """Lines that someone types; a line "^C" is Ctrl-C."""

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        if (line := super().readline()) == "^C\n":
            raise KeyboardInterrupt
        return line


def chat(talk, *lines: str, typed: bool = False, show: bool = False) -> tuple[int, str, str, Session]:
    """A chat of these lines: its exit code, what went to stdout, to stderr, and the session."""
    out, err = io.StringIO(), io.StringIO()
    source = (Typed if typed else io.StringIO)("".join(f"{line}\n" for line in lines))
    session = Session(talk, show=show, screen=Screen(source, out, err))
    return session.run("chat"), out.getvalue(), err.getvalue(), session


@pytest.fixture
def talk(sampler, short) -> Conversation:
    return Conversation(sampler, short)


class Interrupting(Conversation):
    """A conversation whose first answer is stopped by Ctrl-C after two steps."""

    def answer(self, text, prompt, on_step=None):
        if not hasattr(self, "stopped"):
            self.stopped = 0

        def show(step):
            on_step(step)
            self.stopped += 1
            if self.stopped == 2:
                raise KeyboardInterrupt

        return super().answer(text, prompt, show)


class TestPipes:
    def test_answers_alone_go_to_stdout(self, talk):
        code, out, err, _ = chat(talk, "What is 8 * 4?", "", "/steps 4", "/reset", "What is 8 - 4?")
        assert (code, out) == (0, "8 * 4 = 32.\n8 - 4 = 4.\n")
        assert err == "steps 4\na new conversation\n"
        assert len(talk.messages) == 2

    def test_steps_are_lines_on_stderr(self, talk):
        _, out, err, _ = chat(talk, "What is 8 * 4?", show=True)
        assert out == "8 * 4 = 32.\n"
        assert "step 8 of 8" in err and "answer | 8 * 4 = 32" in err and "7 tokens in 8 steps" in err

    def test_what_does_not_work_is_an_exit_code_and_the_rest_goes_on(self, talk):
        code, out, err, _ = chat(talk, "/stepps 4", "7 " * 200, "What is 8 * 4?")
        assert (code, out) == (1, "8 * 4 = 32.\n")
        assert "there is no command /stepps: did you mean /steps?" in err

    def test_ctrl_c_ends_it(self, sampler, short):
        with pytest.raises(KeyboardInterrupt):
            chat(Interrupting(sampler, short), "Hello", show=True)

    def test_bytes_that_are_no_text(self, talk):
        source = io.TextIOWrapper(io.BytesIO(b"Hello \xff\n"), encoding="utf-8")
        with pytest.raises(ValueError, match="expected text as input, got bytes"):
            Session(talk, show=False, screen=Screen(source, io.StringIO(), io.StringIO())).run("chat")

    def test_texts_are_continued_without_a_template(self, sampler, short):
        code, out, _, _ = chat(Continuation(sampler, short), "8 - 4 = 4", "/reset")
        assert code == 1 and len(out.splitlines()) == 1


class TestCommands:
    def test_help_names_all(self, talk):
        _, _, err, _ = chat(talk, "/help")
        assert all(f"/{name} " in err or f"/{name}\n" in err for name in COMMANDS)

    @pytest.mark.parametrize("leave", ["/quit", "/QUIT "])
    def test_quit(self, talk, leave):
        code, out, _, _ = chat(talk, leave, "Hello")
        assert (code, out) == (0, "")

    def test_settings_are_shown_changed_and_used(self, talk):
        _, _, err, session = chat(talk, "/seed", "/seed 7", "/block 4", "/length 4", "/temperature 0.5", "What is 1?")
        assert err.splitlines() == ["seed none", "seed 7", "block 4", "length 4", "temperature 0.5"]
        config = session.talk.config
        assert (session.talk.seed, config.block_size, config.max_new_tokens, config.temperature) == (7, 4, 4, 0.5)

    def test_a_seed_repeats_an_answer(self, sampler, short):
        lines = ["/temperature 3", "/seed 11", "Hello", "/reset", "/seed 11", "Hello", "/reset", "/seed 12", "Hello"]
        _, out, _, _ = chat(Conversation(sampler, short), *lines)
        first, again, other = out.splitlines()
        assert first == again != other

    def test_none_and_all(self, talk):
        _, _, err, session = chat(talk, "/seed 7", "/seed none", "/block all")
        assert session.talk.seed is None and session.talk.config.block_size is None
        assert err.endswith("seed none\nblock all\n")

    @pytest.mark.parametrize(
        ("line", "rule"),
        [
            ("/steps many", "/steps takes a whole number, got 'many'"),
            (f"/seed {2**70}", "64 bits"),
            ("/steps 0", "steps must be at least 1, got 0"),
            ("/block 1.5", "/block takes a whole number or all, got '1.5'"),
            ("/temperature -1", "temperature"),
            ("/reset now", "/reset takes nothing behind it, got 'now'"),
            ("/xyzzy", "there is no command /xyzzy: /help lists"),
            ("/retry", "none has been asked"),
            ("/save", "/save takes a file name"),
            ("/save talk.json", "nothing has been said"),
            ("/save talk.doc", "ends in .json, .html, .gif, got 'talk.doc'"),
            ("/save answer.gif", "there is none to replay"),
        ],
    )
    def test_what_makes_no_sense(self, talk, line, rule):
        before = talk.config
        code, out, err, _ = chat(talk, line)
        assert (code, out) == (1, "") and rule in err and talk.config == before

    def test_a_setting_that_the_sampler_has_not(self, sampler):
        talk = Conversation(EntropyBoundSampler(sampler.model, sampler.tokenizer))
        code, _, err, _ = chat(talk, "/steps", "/steps 4", "/length 4")
        assert code == 1 and err == "EntropyBoundSampler has no setting steps\n" * 2 + "length 4\n"

    def test_history_and_retry(self, talk):
        _, out, err, _ = chat(talk, "/history", "What is 8 * 4?", "/retry", "/history")
        assert out == "8 * 4 = 32.\n" * 2
        assert err == "nothing has been said\nuser: What is 8 * 4?\nassistant: 8 * 4 = 32.\n"

    def test_saved_conversations_can_be_trained_on(self, talk, tmp_path):
        path = tmp_path / "talk.json"
        code, _, err, _ = chat(talk, "What is 8 * 4?", f"/save {path}")
        saved = json.loads(path.read_text())
        assert code == 0 and f"written: {path}" in err
        assert saved["messages"] == talk.messages and saved["settings"]["steps"] == 8
        assert list(tmp_path.iterdir()) == [path]

    def test_nothing_is_written_over(self, talk, tmp_path):
        path = tmp_path / "talk.json"
        path.write_text("mine")
        code, _, err, _ = chat(talk, "What is 8 * 4?", f"/save {path}", f"/save {tmp_path / 'no' / 'talk.json'}")
        assert code == 1 and path.read_text() == "mine"
        assert "is left as it is" in err and "expected a folder to write talk.json to" in err

    def test_replays(self, talk, tmp_path):
        html, gif = tmp_path / "a.html", tmp_path / "a.gif"
        code, _, _, session = chat(talk, "What is 8 * 4?", f"/save {html}", f"/save {gif}", show=True)
        assert code == 0 and gif.read_bytes().startswith(b"GIF89a") and "What is 8 * 4?" in html.read_text()
        assert len(session.replay.frames) == 9 and session.replay.ranked_by == "log_prob"


class TestTyping:
    def test_a_conversation_that_is_too_long(self, talk):
        """Nothing is lost: what was said is there, and the question is asked again after /reset."""
        talk.turns = [{"role": "user", "content": "7" + " 7" * 174}, {"role": "assistant", "content": "No."}]
        before = list(talk.turns)
        code, out, err, _ = chat(talk, "What is 8 * 4?", typed=True)
        assert code == 0 and out == "" and talk.turns == before
        assert "of them from earlier turns" in err and "room for 192" in err and "/reset and then /retry" in err
        _, out, _, _ = chat(talk, "What is 8 * 4?", "/reset", "/retry", typed=True)
        assert out == "8 * 4 = 32.\n"

    def test_a_question_that_is_too_long_alone(self, talk):
        _, _, err, _ = chat(talk, "7 " * 200, typed=True)
        assert "room for 192" in err and "/length N and then /retry" in err and "/reset" not in err

    def test_ctrl_c_stops_the_answer_and_not_the_program(self, sampler, short):
        talk = Interrupting(sampler, short)
        code, out, err, session = chat(talk, "What is 8 * 4?", "/retry", typed=True, show=True)
        assert code == 0 and out == "8 * 4 = 32.\n"
        assert "stopped; this is no part of the conversation, /retry asks again" in err
        assert len(talk.messages) == 2 and session.answered

    def test_ctrl_c_before_a_question_leaves_when_typed_twice(self, talk):
        with pytest.raises(KeyboardInterrupt):
            chat(talk, "^C", "^C", "What is 8 * 4?", typed=True)
        code, out, err, _ = chat(talk, "^C", "What is 8 * 4?", "^C", typed=True)
        assert (code, out) == (0, "8 * 4 = 32.\n") and err.count("leaves\n") == 3

    def test_a_retry_that_is_stopped_leaves_the_answer(self, talk, monkeypatch):
        def stop(*_, **options):
            raise KeyboardInterrupt

        chat(talk, "What is 8 * 4?", typed=True)
        before = list(talk.turns)
        session = Session(talk, show=False, screen=Screen(Typed("/retry\n"), io.StringIO(), io.StringIO()))
        session.asked, session.answered = "What is 8 * 4?", True
        monkeypatch.setattr(talk.sampler, "sample", stop)
        assert session.run("chat") == 0 and talk.turns == before


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "dllm.cli", "chat", "--device", "cpu", "--gen-length", "8", *words]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


class TestProgram:
    def test_pipes(self, tmp_path):
        done = programs.run(*command()[1:], lines="What is 8 * 4?\n/quit\n", cwd=tmp_path, environment=environment())
        assert (done.returncode, done.stdout, done.stderr) == (0, "8 * 4 = 32.\n", "")

    @pytest.mark.parametrize(
        ("words", "rule"),
        [
            (["--steps", "0"], "steps must be at least 1, got 0"),
            (["--device", "toaster"], "expected a device of this machine, such as cpu or cuda, got 'toaster'"),
            (["--model", "/no/such/folder"], "/no/such/folder"),
            (["--remasking", "none"], "remasking must be one of"),
        ],
    )
    def test_options_that_make_no_sense(self, words, rule, capsys, monkeypatch):
        from dllm import cli

        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        assert cli.main(["chat", "--device", "cpu", *words]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("dllm chat: ") and rule in err and len(err.splitlines()) < 4

    def test_interrupted(self, capsys, monkeypatch):
        from dllm import cli
        from dllm.chat import program

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(program, "_session", interrupt)
        assert cli.main(["chat"]) == 130
        assert "interrupted" in capsys.readouterr().err

    @pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
    def test_a_real_terminal(self, tmp_path):
        """Frames are drawn live; Ctrl-C stops an answer, and the chat goes on to its end."""
        terminal = Terminal(command("--gen-length", "96", "--seed", "1"), environment(TERM="xterm-256color"), tmp_path)
        terminal.until("you > ")
        shown = terminal.send("What is 8 * 4?\n", "you > ")
        assert "8 * 4 = 32." in shown and "tentative" in shown and "\033[3;33m" in shown and "tokens/s" in shown
        terminal.send("What is 8 - 4?\n", "step ")
        stopped = terminal.send("\x03", "you > ")
        assert "stopped; this is no part of the conversation" in stopped
        history = terminal.send("/history\n", "you > ")
        assert "assistant: 8 * 4 = 32." in history and "What is 8 - 4?" not in history
        terminal.insist("\x03", "leaves")
        terminal.send("/quit\n", None)
        assert terminal.exit_code() == 0


class Terminal:
    """A program in a pseudo-terminal of 24 lines of 90 columns."""

    LIMIT = 240  # seconds

    def __init__(self, words: list[str], environment: dict[str, str], folder: Path):
        import fcntl
        import pty
        import struct
        import termios

        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job ignores it, and so would the program
            os.execve(words[0], words, environment)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 90, 0, 0))

    def send(self, text: str, answer: str | None) -> str:
        """Type `text` and return what is shown up to `answer`."""
        os.write(self.fd, text.encode())
        return self.until(answer)

    def insist(self, key: str, answer: str) -> str:
        """Type a key until it is answered: what comes as a signal between two reads of the program goes nowhere."""
        for _ in range(self.LIMIT // 5):
            os.write(self.fd, key.encode())
            time.sleep(1)
            with contextlib.suppress(AssertionError):
                os.write(self.fd, b" ")  # wakes readline, where the signal came just before it began to wait
                return self.until(answer, limit=5)
        raise AssertionError(f"{key!r} was never answered by {answer!r}")

    def until(self, text: str | None, limit: float = LIMIT) -> str:
        """What is shown up to `text`, or up to the end for None."""
        seen, deadline = b"", time.monotonic() + limit
        while text is None or text.encode() not in seen:
            assert time.monotonic() < deadline, seen.decode(errors="replace")
            if not select.select([self.fd], [], [], 1)[0]:
                continue
            try:
                part = os.read(self.fd, 65536)
            except OSError:  # how Linux says that the other side has closed
                part = b""
            if not part:
                assert text is None, seen.decode(errors="replace")
                break
            seen += part
        return seen.decode(errors="replace")

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_the_functions_of_scripts(sampler, short, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is 8 * 4?\n"))
    assert sessions.multi_turn_chat(sampler, short, visualize=False) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("8 - 4 =[MASK]\n"))
    assert sessions.single_turn_sampling(sampler, short, visualize=True) == 0
    out, err = capsys.readouterr()
    assert out.startswith("8 * 4 = 32.\n8 - 4 =") and "step 1 of 1" in err
