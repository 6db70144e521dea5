"""Ask questions: show the steps, print the answer, and keep what /retry and /save need."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from dllm.chat.display import open_view
from dllm.chat.replay import Replay
from dllm.chat.screen import Screen
from dllm.chat.talk import Prompt, Reply, Talk
from dllm.chat.view import plain_text
from dllm.fast import Step


class Exchange:
    """Asks a model one question after another, and prints the answers.

    Args:
        talk: the sampler, its settings and the conversation so far.
        show: show the steps of every answer.
        screen: where to print; stdin, stdout and stderr by default.

    Attributes:
        replay: the steps of the last answer, None where they were not shown.
        asked: the last question.
        answered: whether it has been answered.
    """

    def __init__(self, talk: Talk, *, show: bool = True, screen: Screen | None = None):
        self.talk, self.show = talk, show
        self.screen = Screen() if screen is None else screen
        self.replay: Replay | None = None
        self.asked: str | None = None
        self.answered = False

    def ask(self, text: str) -> None:
        """Answer `text`. An answer that fails or is stopped does not become part of the conversation."""
        self.asked, self.answered = text, False
        prompt = self.talk.prompt(text)
        with self._showing_steps(prompt) as on_step:
            reply = self.talk.answer(text, prompt, on_step)
        self.answered = True
        self.replay = self._replay(text, prompt, reply)
        self.screen.print_answer(reply.text or "(an empty answer)")
        stats = reply.stats
        speed = stats.useful_tokens / max(stats.seconds, 1e-9)
        if self.show or self.screen.interactive:
            self.screen.print_message(
                f"{stats.useful_tokens} tokens in {stats.forwards} steps, {stats.seconds:.1f} s, {speed:.0f} tokens/s"
            )

    def retry(self) -> None:
        """Ask the last question again; the new answer replaces the old one.

        Raises:
            ValueError: nothing has been asked.
        """
        if self.asked is None:
            raise ValueError("/retry asks the last question again, but none has been asked")
        if not self.answered:
            self.ask(self.asked)
            return
        with self.talk.without_last_turn():
            self.ask(self.asked)

    @contextlib.contextmanager
    def _showing_steps(self, prompt: Prompt) -> Iterator[Callable[[Step], object] | None]:
        """Yields the callback for each step, None where steps are not shown; prints the last state on Ctrl-C."""
        if not self.show:
            yield None
            return
        tokenizer, film = self.talk.tokenizer, prompt.film
        try:
            with open_view(tokenizer, ["answer"], film, self.screen.messages, transient=True) as view:
                yield view.show
        except KeyboardInterrupt:
            for frames in filter(None, film.rows):
                self.screen.print_message(f"\n{plain_text(tokenizer, frames[-1])}")
            raise

    def _replay(self, text: str, prompt: Prompt, reply: Reply) -> Replay | None:
        if not self.show:
            return None
        sampler, ranked_by = self.talk.sampler, "log_prob"
        if hasattr(sampler, "policy"):
            ranked_by = sampler.policy(self.talk.config).get("confidence", ranked_by)
        ranked_by = getattr(sampler, "confidence", ranked_by)  # edits have none
        return Replay(text, reply.text, prompt.film.rows[0], ranked_by)
