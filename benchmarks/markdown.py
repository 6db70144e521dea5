"""Markdown tables, and the format of numbers in them."""

from __future__ import annotations

from collections.abc import Iterable


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A markdown table.

    Example:
        >>> print(table(["a", "b"], [["1", "2"]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    head = list(head)
    rows = [head, *map(list, lines)]
    drawn = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([drawn[0], "|" + "---|" * len(head), *drawn[1:]])


def megabytes(n_bytes: int | None) -> str:
    """Bytes in megabytes, with two decimals below ten megabytes.

    Example:
        >>> megabytes(375_000_000), megabytes(460_000)
        ('375', '0.46')
    """
    return "n/a" if n_bytes is None else f"{n_bytes / 1e6:.{0 if n_bytes >= 1e7 else 2}f}"
