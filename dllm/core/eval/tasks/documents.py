"""Functions that make documents of lm-eval from the rows of a published data set."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

LETTERS = "ABCD"
_MBPP_SHOTS = (2, 3, 4)  # task_id of the three shots that the paper uses


def gpqa_documents(rows: datasets.Dataset) -> datasets.Dataset:
    """Rows of GPQA with choice1 to choice4, in an order drawn for each row by its number, and the right letter.

    Example:
        >>> import datasets
        >>> columns = {"Correct Answer": ["4"], "Incorrect Answer 1": ["1"]}
        >>> columns |= {"Incorrect Answer 2": ["2"], "Incorrect Answer 3": ["3"]}
        >>> (row,) = gpqa_documents(datasets.Dataset.from_dict(columns))
        >>> row[f"choice{'ABCD'.index(row['answer']) + 1}"]
        '4'
    """
    return rows.map(_with_choices, with_indices=True)


def _with_choices(row: dict[str, Any], number: int) -> dict[str, str]:
    columns = ["Correct Answer", *(f"Incorrect Answer {wrong}" for wrong in (1, 2, 3))]
    random.Random(number).shuffle(columns)
    choices = {f"choice{place}": (row[column] or "").strip() for place, column in enumerate(columns, 1)}
    return choices | {"answer": LETTERS[columns.index("Correct Answer")]}


def mbpp_shots(rows: datasets.Dataset) -> list[dict[str, Any]]:
    """The rows of MBPP's split "prompt" that the paper uses as shots."""
    return [row for row in rows if row["task_id"] in _MBPP_SHOTS]
