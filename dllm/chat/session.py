"""A chat from the first line to the last: read, answer while one looks on, and go on whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from dllm.chat.commands import Leave, run_command
from dllm.chat.replay import Replay
from dllm.chat.screen import Screen
from dllm.chat.talk import Continuation, Conversation, Prompt, Reply, Talk, TooLong
from dllm.chat.text import banner_line
from dllm.chat.view import open_view, plain_text
from dllm.core.samplers import BaseSampler, BaseSamplerConfig
from dllm.exits import explanation, foreseen
from dllm.fast import Step


class Session:
    """Reads lines and answers them until the input ends.

    Args:
        talk: who answers, and what was said.
        show: the steps of every answer.
        screen: stdin, stdout and stderr by default.

    Attributes:
        replay: the steps of the last answer that was shown.
    """

    def __init__(self, talk: Talk, *, show: bool = True, screen: Screen | None = None):
        self.talk, self.show = talk, show
        self.screen = Screen() if screen is None else screen
        self.replay: Replay | None = None
        self.asked: str | None = None
        self.answered = False

    def run(self, title: str) -> int:
        """The whole chat; 0, or 1 if a line that was piped in could not be carried out.

        On a terminal Ctrl-C stops an answer; typed twice in a row before a question it leaves. Where lines are piped in
        it is raised.

        Raises:
            KeyboardInterrupt: Ctrl-C, and no one types.
            ValueError: what comes in is no text.
        """
        failed, leaving = False, False
        if self.screen.interactive:
            self.screen.note(banner_line(title))
            self.screen.note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
        with contextlib.suppress(Leave):
            while True:
                try:
                    line = self.screen.read()
                except KeyboardInterrupt:
                    if leaving or not self.screen.interactive:
                        raise
                    self.screen.note("\nCtrl-C again, Ctrl-D or /quit leaves")
                    leaving = True
                    continue
                leaving = False
                if line is None:
                    break
                failed |= not self._carry_out(line)
        return int(failed and not self.screen.interactive)

    def retry(self) -> None:
        """Ask the last question again, in place of the turn it was answered in."""
        if self.asked is None:
            raise ValueError("/retry asks the last question again, but none has been asked")
        if not self.answered:
            self._ask(self.asked)
            return
        with self.talk.last_turn_aside():
            self._ask(self.asked)

    def _carry_out(self, line: str) -> bool:
        """Whether it worked. Empty lines do nothing."""
        if not line.strip():
            return True
        try:
            if line.lstrip().startswith("/"):
                run_command(self, line.strip())
            else:
                self._ask(line)
        except TooLong as error:
            self.screen.complain(f"{error}. {self._way_out()}")
        except Exception as error:
            # a chat outlives what its model or device does; where nobody reads it ends
            if isinstance(error, BrokenPipeError) or not (foreseen(error) or isinstance(error, RuntimeError)):
                raise
            self.screen.complain(explanation(error))
        except KeyboardInterrupt:
            if not self.screen.interactive:
                raise
            self.screen.note("stopped; this is no part of the conversation, /retry asks again")
        else:
            return True
        return False

    def _way_out(self) -> str:
        kept = "The conversation and the question are kept"
        if self.talk.messages:
            return f"{kept}: /reset and then /retry asks it in a new conversation, /length N allows shorter answers"
        return f"{kept}: /length N and then /retry allows a shorter answer"

    def _ask(self, text: str) -> None:
        self.asked, self.answered = text, False
        prompt = self.talk.prompt(text)
        with self._shown(prompt) as on_step:
            reply = self.talk.answer(text, prompt, on_step)
        self.answered = True
        self.replay = self._replay(text, prompt, reply)
        self.screen.say(reply.text or "(an empty answer)")
        stats = reply.stats
        speed = stats.useful_tokens / max(stats.seconds, 1e-9)
        if self.show or self.screen.interactive:
            self.screen.note(
                f"{stats.useful_tokens} tokens in {stats.forwards} steps, {stats.seconds:.1f} s, {speed:.0f} tokens/s"
            )

    @contextlib.contextmanager
    def _shown(self, prompt: Prompt) -> Iterator[Callable[[Step], object] | None]:
        """What to call after each step; a stopped answer leaves its last state on the screen."""
        if not self.show:
            yield None
            return
        tokenizer, film = self.talk.tokenizer, prompt.film
        try:
            with open_view(tokenizer, ["answer"], film, self.screen.aside, transient=True) as view:
                yield view.show
        except KeyboardInterrupt:
            for frames in filter(None, film.rows):
                self.screen.note(f"\n{plain_text(tokenizer, frames[-1])}")
            raise

    def _replay(self, text: str, prompt: Prompt, reply: Reply) -> Replay | None:
        if not self.show:
            return None
        ranked_by = self.talk.sampler.policy(self.talk.config).get("confidence", "log_prob")
        return Replay(text, reply.text, prompt.film.rows[0], ranked_by)


def multi_turn_chat(
    sampler: BaseSampler, sampler_config: BaseSamplerConfig | None = None, visualize: bool = True
) -> int:
    """Chat in the terminal, every answer seeing all turns before it, until the input ends.

    Args:
        sampler: of :mod:`dllm.core.samplers`, with its model and a tokenizer that has a chat template.
        sampler_config: its settings; the class's defaults when None.
        visualize: show the steps while an answer takes form.

    Returns:
        0, or 1 if a line that was piped in could not be carried out.

    Raises:
        ValueError: the tokenizer has no chat template.
        KeyboardInterrupt: see :meth:`Session.run`.
    """
    return Session(Conversation(sampler, sampler_config), show=visualize).run("chat")


def single_turn_sampling(
    sampler: BaseSampler, sampler_config: BaseSamplerConfig | None = None, visualize: bool = True
) -> int:
    """Continue every line that is typed, without a chat template and without memory; fill a line's mask tokens.

    Arguments, result and errors as in :func:`multi_turn_chat`.
    """
    return Session(Continuation(sampler, sampler_config), show=visualize).run("continuation")
