"""Types of the benchmarks' options: counts and seconds, refused where they cannot be meant."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number of at least 1.

    Example:
        >>> positive("3")
        3
    """
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def seconds(text: str) -> float:
    """A time above 0.

    Example:
        >>> seconds("2.5")
        2.5
    """
    if not (number := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number
