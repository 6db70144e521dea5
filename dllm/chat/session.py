"""A chat from the first line to the last: read, answer while one looks on, and go on whatever happens."""

from __future__ import annotations

import contextlib

from dllm.chat.commands import Leave, run_command
from dllm.chat.exchange import Exchange
from dllm.chat.talk import Continuation, Conversation, TooLong
from dllm.chat.text import banner_line
from dllm.core.samplers import BaseSampler, BaseSamplerConfig
from dllm.exits import explanation, foreseen


class Session(Exchange):
    """A chat: reads lines, answers questions and runs commands until the input ends. Arguments as of `Exchange`."""

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

    def _carry_out(self, line: str) -> bool:
        """Whether it worked. Empty lines do nothing."""
        if not line.strip():
            return True
        try:
            if line.lstrip().startswith("/"):
                run_command(self, line.strip())
            else:
                self.ask(line)
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
