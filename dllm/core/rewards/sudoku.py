"""Reward of 4 x 4 sudoku: the share of empty cells that are filled in right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dllm.core.rewards.completions import last_closed_answer, texts_of
from dllm.core.rewards.registry import register_reward

CELLS = 16
_GRID = re.compile(f"[0-9]{{{CELLS}}}")


@register_reward("sudoku")
def sudoku_reward(
    completions: Sequence[Any], *, puzzle: Sequence[str], solution: Sequence[str], **columns: Any
) -> list[float]:
    """Share of the puzzle's empty cells that the last answer has right.

    The digits of the answer are the cells, row by row; missing ones count as 0, further ones are ignored.

    Args:
        completions: texts or lists of messages.
        puzzle: 16 digits each, 0 for an empty cell.
        solution: 16 digits each.

    Raises:
        ValueError: a puzzle or a solution is not a text of 16 digits, or a puzzle has no empty cell.

    Example:
        >>> texts = ["<answer>1234 3412 2143 4321</answer>", "<answer>12</answer>", "I give up"]
        >>> sudoku_reward(texts, puzzle=["1030041020034001"] * 3, solution=["1234341221434321"] * 3)
        [1.0, 0.125, 0.0]
    """
    return [
        _share(last_closed_answer(text) or "", _grid(given), _grid(wanted))
        for text, given, wanted in zip(texts_of(completions), puzzle, solution, strict=True)
    ]


def _share(answer: str, puzzle: str, solution: str) -> float:
    filled = "".join(re.findall("[0-9]", answer))[:CELLS].ljust(CELLS, "0")
    empty = [cell for cell, digit in enumerate(puzzle) if digit == "0"]
    if not empty:
        raise ValueError(f"a puzzle must have an empty cell, got {puzzle!r}")
    return sum(filled[cell] == solution[cell] for cell in empty) / len(empty)


def _grid(cells: Any) -> str:
    if not isinstance(cells, str) or not _GRID.fullmatch(cells):
        raise ValueError(f"a puzzle and a solution must be texts of {CELLS} digits, got {cells!r:.200}")
    return cells
