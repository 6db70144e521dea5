"""Rewards of texts of words "w7". The process that computes rewards imports this file, so it imports little."""

from __future__ import annotations

import os


def counted(completions: list[str], wanted: list[int], **columns) -> list[float]:
    """How often the wanted token comes; it needs the column `wanted`."""
    return [float(text.split().count(f"w{token}")) for text, token in zip(completions, wanted, strict=True)]


def equal(completions: list[str], **columns) -> list[float]:
    return [1.0] * len(completions)


def spread(completions: list[str], **columns) -> list[float]:
    """Rewards that differ, whatever the tokens."""
    return [float(sum(int(word[1:]) for word in text.split()) % 7) for text in completions]


def letters(completions: list[list[dict[str, str]]], **columns) -> list[float]:
    """The same for completions that are messages."""
    return [float(sum(map(ord, reply["content"])) % 7) for (reply,) in completions]


def raises_on_one_rank(completions: list[str], **columns) -> list[float]:
    if os.environ["RANK"] == "1":
        raise ArithmeticError("no reward here")
    return spread(completions)


def one_too_few_on_one_rank(completions: list[str], **columns) -> list[float]:
    return spread(completions[1:] if os.environ["RANK"] == "0" else completions)
