"""What one sees of the denoising: every step redrawn on a terminal, a few lines elsewhere.

Three kinds of token: masked (nothing known yet), tentative (this step's proposal, not kept), committed (kept for good).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text
from torch import Tensor

MASKED, TENTATIVE, COMMITTED, NEW = "masked", "tentative", "committed", "new"
STYLES = {MASKED: "bright_black", TENTATIVE: "italic yellow", COMMITTED: "bold", NEW: "bold green"}
PLAIN = {MASKED: "{}", TENTATIVE: "({})", COMMITTED: "{}", NEW: "{}"}
SECONDS_PER_FRAME = 0.06
PLAIN_LINES = 5


class Step(Protocol):
    """What `generate` shows after each step, see `dllm.fast.Step`."""

    canvas: Tensor
    tentative: Tensor
    block: int
    blocks: int
    step: int
    steps: int


class View:
    """Follows one call of `generate`: ``with View(...) as view: generate(..., on_step=view.show)``.

    Args:
        tokenizer: turns token ids into words; its mask token marks what is not known yet.
        questions: the prompts as text, one for each row.
        gen_length: columns that are generated, at the right end of the canvas; only they are shown.
        console: where to draw; a terminal gets frames, anything else gets lines.
    """

    def __init__(self, tokenizer: object, questions: Sequence[str], gen_length: int, console: Console):
        self.tokenizer, self.questions, self.gen_length, self.console = tokenizer, questions, gen_length, console
        self.before: Tensor | None = None
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> View:
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.__exit__(kind, error, trace)

    def show(self, step: Step) -> None:
        """Draw the state after a step."""
        canvas, tentative = (tokens[:, -self.gen_length :].cpu() for tokens in (step.canvas, step.tentative))
        states = self._states(canvas, tentative)
        self.before = canvas
        done, total = step.block * step.steps + step.step + 1, step.blocks * step.steps
        if self.live:
            self.live.update(self._frame(tentative, states, done, total), refresh=True)
            time.sleep(SECONDS_PER_FRAME)
        elif done == total or done % max(1, total // PLAIN_LINES) == 0:
            self._lines(tentative, states, done, total)

    def _states(self, canvas: Tensor, tentative: Tensor) -> list[list[str]]:
        """The kind of every generated token."""
        mask = self.tokenizer.mask_token_id
        before = canvas if self.before is None else self.before

        def kind(now: int, proposed: int, earlier: int) -> str:
            if now == mask:
                return MASKED if proposed == mask else TENTATIVE
            return NEW if earlier == mask else COMMITTED

        rows = zip(canvas.tolist(), tentative.tolist(), before.tolist(), strict=True)
        return [[kind(*columns) for columns in zip(*row, strict=True)] for row in rows]

    def _frame(self, tokens: Tensor, states: list[list[str]], done: int, total: int) -> Group:
        panels = []
        for question, row, kinds in zip(self.questions, tokens.tolist(), states, strict=True):
            text = Text()
            for piece, kind in zip(self._pieces(row), kinds, strict=True):
                text.append(piece, STYLES[kind])
            panels.append(Panel(text, title=question, title_align="left"))
        legend = Text(f"step {done} of {total}   ")
        for kind in (MASKED, TENTATIVE, NEW, COMMITTED):
            legend.append(f" {kind} ", STYLES[kind])
        return Group(*panels, legend)

    def _lines(self, tokens: Tensor, states: list[list[str]], done: int, total: int) -> None:
        self.console.print(f"step {done} of {total}: · masked, (tentative), committed")
        for question, row, kinds in zip(self.questions, tokens.tolist(), states, strict=True):
            words = [PLAIN[kind].format(piece.strip()) for piece, kind in zip(self._pieces(row), kinds, strict=True)]
            self.console.print(f"  {question} | {' '.join(words)}", markup=False, highlight=False, soft_wrap=True)

    def _pieces(self, tokens: list[int]) -> list[str]:
        """Each token as it stands in running text; masks are dots, ends of text are squares.

        A token's text is what it adds to the text before it: only so does any tokenizer say where its spaces are.
        """
        marks = {self.tokenizer.mask_token_id: " ·", self.tokenizer.eos_token_id: "∎"}
        pieces, known, before = [], [], ""
        for token in tokens:
            if token in marks:
                pieces.append(marks[token])
                continue
            known.append(token)
            # a character of several tokens appears with the last of them
            text = self.tokenizer.decode(known, clean_up_tokenization_spaces=False).rstrip("\ufffd")
            piece = text[len(before) :]
            pieces.append(piece if before or piece.startswith(" ") else f" {piece}")
            before = text
        return pieces
