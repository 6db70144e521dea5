"""Command lines as lists of words."""

from __future__ import annotations


def without(words: list[str], option: str, *, values: bool = True) -> list[str]:
    """The arguments without an option and, where it has some (`values`), its values.

    Example:
        >>> without(["--a", "1", "2", "--b", "3"], "--a")
        ['--b', '3']
        >>> without(["--a", "1", "--quick", "2"], "--quick", values=False)
        ['--a', '1', '2']
    """
    kept, skipping = [], False
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--"):
            skipping = name == option
        if not skipping or (name != option and not values):
            kept.append(word)
    return kept
