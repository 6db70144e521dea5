"""The loop of a chat: read a line, answer it or run it as a command, and go on after errors."""

from __future__ import annotations

import contextlib

from dllm.chat.commands import Quit, run_command
from dllm.chat.exchange import Exchange
from dllm.chat.talk import Continuation, Conversation, TooLong
from dllm.chat.text import banner_line
from dllm.core.samplers import BaseSampler, BaseSamplerConfig
from dllm.exits import explanation, is_expected


class Session(Exchange):
    """Reads lines, answers questions and runs commands until the input ends. Arguments: see Exchange."""

    def run(self, title: str) -> int:
        """Run the chat; returns 0, or 1 if a line that was piped in failed.

        On a terminal Ctrl-C stops an answer; pressed twice in a row before a question it ends the chat.

        Raises:
            KeyboardInterrupt: Ctrl-C twice on a terminal, or once where lines are piped in.
            ValueError: the input is not text.
        """
        failed, leaving = False, False
        if self.screen.interactive:
            self.screen.print_message(banner_line(title))
            self.screen.print_message("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
        with contextlib.suppress(Quit):
            while True:
                try:
                    line = self.screen.read()
                except KeyboardInterrupt:
                    if leaving or not self.screen.interactive:
                        raise
                    self.screen.print_message("\nCtrl-C again, Ctrl-D or /quit leaves")
                    leaving = True
                    continue
                leaving = False
                if line is None:
                    break
                failed |= not self._run_line(line)
        return int(failed and not self.screen.interactive)

    def _run_line(self, line: str) -> bool:
        """Answer a question or run a command; returns whether it worked. Empty lines do nothing."""
        if not line.strip():
            return True
        try:
            if line.lstrip().startswith("/"):
                run_command(self, line.strip())
            else:
                self.ask(line)
        except TooLong as error:
            self.screen.print_error(f"{error}. {self._advice()}")
        except Exception as error:
            # errors of the model or the device do not end a chat; a closed output does
            if isinstance(error, BrokenPipeError) or not (is_expected(error) or isinstance(error, RuntimeError)):
                raise
            self.screen.print_error(explanation(error))
        except KeyboardInterrupt:
            if not self.screen.interactive:
                raise
            self.screen.print_message("stopped; this is no part of the conversation, /retry asks again")
        else:
            return True
        return False

    def _advice(self) -> str:
        """What to do about a prompt that is too long."""
        kept = "The conversation and the question are kept"
        if self.talk.messages:
            return f"{kept}: /reset and then /retry asks it in a new conversation, /length N allows shorter answers"
        return f"{kept}: /length N and then /retry allows a shorter answer"


def multi_turn_chat(
    sampler: BaseSampler, sampler_config: BaseSamplerConfig | None = None, visualize: bool = True
) -> int:
    """Chat in the terminal until the input ends; every answer sees all turns before it.

    Args:
        sampler: of :mod:`dllm.core.samplers`, with its model and a tokenizer that has a chat template.
        sampler_config: its settings; the class's defaults when None.
        visualize: show the denoising steps of each answer.

    Returns:
        0, or 1 if a line that was piped in failed.

    Raises:
        ValueError: the tokenizer has no chat template.
        KeyboardInterrupt: see :meth:`Session.run`.
    """
    return Session(Conversation(sampler, sampler_config), show=visualize).run("chat")


def single_turn_sampling(
    sampler: BaseSampler, sampler_config: BaseSamplerConfig | None = None, visualize: bool = True
) -> int:
    """Continue each line independently, without a chat template; mask tokens in a line are filled instead.

    Arguments, result and errors as in :func:`multi_turn_chat`.
    """
    return Session(Continuation(sampler, sampler_config), show=visualize).run("continuation")
