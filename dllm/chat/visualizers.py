"""Show a sampler's `histories`: on the terminal, as a GIF, or as a web page."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dllm.chat.display import is_terminal
from dllm.chat.film import Film, Frame, film_from_histories
from dllm.chat.gif import animated
from dllm.chat.page import replay_page
from dllm.chat.replay import Replay
from dllm.chat.save import write
from dllm.chat.tokens import pieces
from dllm.chat.view import PlainView, Progress, View


@dataclass
class BaseVisualizer(ABC):
    """Base class: shows the canvases of a sampler step by step.

    tokenizer: decodes token ids; it has a mask token.
    """

    tokenizer: Any

    @abstractmethod
    def visualize(self, history: Sequence[Tensor], **options: Any) -> Any:
        """Show `history`: the canvases, token ids [B, L] or [L], the first from before the first step."""


@dataclass
class TerminalVisualizer(BaseVisualizer):
    """Replays the steps on the terminal.

    Example:
        >>> import torch
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> six, times, seven = tokenizer("6 * 7").input_ids
        >>> steps = [torch.tensor([six, tokenizer.mask_token_id, seven]), torch.tensor([six, times, seven])]
        >>> TerminalVisualizer(tokenizer).visualize(steps, rich=False)
        step 1 of 1: · masked, (tentative), committed
          dllm | 6 * 7
    """

    def visualize(
        self,
        history: Sequence[Tensor],
        fps: float = 16,
        rich: bool = True,
        title: str = "dllm",
        max_chars: int | None = None,
        every_n_steps: int = 1,
    ) -> None:
        """Replay the steps.

        Args:
            history: see :meth:`BaseVisualizer.visualize`; a sampler's output has it as `histories`.
            fps: frames per second.
            rich: redraw in colors; a few plain lines if False or if stdout is not a terminal.
            title: of each row; with several rows their numbers are added.
            max_chars: show at most the first `max_chars` characters of a row; None: all.
            every_n_steps: show every n-th step, and the last.

        Raises:
            ImportError: `rich` is asked for on a terminal and is not installed.
            TypeError, ValueError: an argument breaks a rule.
        """
        if not fps > 0:
            raise ValueError(f"fps must be above 0, got {fps}")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        if max_chars is not None and max_chars < 1:
            raise ValueError(f"max_chars must be at least 1 or None, got {max_chars}")
        film = film_from_histories(self.tokenizer, history)
        titles = _titles(title, len(film.rows))
        live = rich and is_terminal(sys.stdout)
        view = self._live_view(titles, film) if live else PlainView(self.tokenizer, titles, film, sys.stdout)
        steps = len(film.rows[0]) - 1 if film.rows else 0
        with view:
            for step in range(0 if live else 1, steps + 1):
                frames = [frames[step] for frames in film.rows]
                committed = sum(frame.committed for frame in frames)
                if step == steps or (step % every_n_steps == 0 and (live or view.due(step, steps))):
                    shown = [self._first_characters(frame, max_chars) for frame in frames]
                    view.draw(shown, Progress(step, steps, committed, None))
                    time.sleep(1 / fps if live else 0)

    def _first_characters(self, frame: Frame, max_chars: int | None) -> Frame:
        """The frame cut to the tokens that end within its first `max_chars` characters."""
        if max_chars is None:
            return frame
        ends = itertools.accumulate(len(text) for text in pieces(self.tokenizer, frame.tokens))
        shown = sum(end <= max_chars for end in ends)
        return Frame(*(each[:shown] for each in frame))

    def _live_view(self, titles: Sequence[str], film: Film) -> View:
        if importlib.util.find_spec("rich") is None:
            raise ImportError("rich is not installed: pip install 'dllm[chat]', or visualize(..., rich=False)")
        from rich.console import Console

        from dllm.chat.live import LiveView

        return LiveView(self.tokenizer, titles, film, Console())


@dataclass
class VideoVisualizer(BaseVisualizer):
    """Writes the steps as an animated GIF (needs Pillow)."""

    def visualize(
        self,
        history: Sequence[Tensor],
        output_path: Path | str = "visualization.gif",
        *,
        title: str = "dllm",
        **options: Any,
    ) -> Path:
        """Write the file, replacing an existing one, and return its path.

        Args:
            history: see :meth:`BaseVisualizer.visualize`.
            output_path: must end in .gif.
            title: above each row; with several rows their numbers are added.
            options: fps, hold, width, font, font_size of :func:`dllm.chat.gif.animated`.

        Raises:
            ImportError, OSError, TypeError, ValueError: see :func:`dllm.chat.gif.animated`; or another suffix.
        """
        path = Path(output_path)
        if path.suffix.lower() != ".gif":
            raise ValueError(f"output_path must end in .gif, got {path.name!r}")
        rows = film_from_histories(self.tokenizer, history).rows
        return write(path, animated(self.tokenizer, rows, titles=_titles(title, len(rows)), **options))


@dataclass
class PageVisualizer(BaseVisualizer):
    """Writes the steps of one row as a web page with a slider, see :func:`dllm.chat.page.replay_page`."""

    def visualize(
        self,
        history: Sequence[Tensor],
        output_path: Path | str = "visualization.html",
        *,
        row: int = 0,
        title: str = "dllm",
    ) -> Path:
        """Write the file, replacing an existing one, and return its path. Histories have no confidences to show."""
        frames = film_from_histories(self.tokenizer, history).rows[row]
        page = replay_page(self.tokenizer, Replay(title, self.tokenizer.decode(frames[-1].tokens), frames))
        return write(Path(output_path), page.encode())


def visualize_histories(tokenizer: Any, histories: Sequence[Tensor]) -> None:
    """Replay the steps on the terminal, in colors where possible."""
    TerminalVisualizer(tokenizer).visualize(histories)


def _titles(title: str, rows: int) -> list[str]:
    return [title] if rows == 1 else [f"{title} {row + 1}" for row in range(rows)]
