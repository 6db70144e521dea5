"""The command line of programs that convert a checkpoint: a source and a target, also under 0.1's names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def conversion_parser(program: str, description: str, source: str) -> argparse.ArgumentParser:
    """A parser of a source and a target, to which a program adds its own options.

    Args:
        program: the module's name.
        description: what it does, one line.
        source: what the source is.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description, allow_abbrev=False)
    parser.add_argument("source", nargs="?", help=source)
    parser.add_argument("target", nargs="?", type=Path, help="folder to create")
    parser.add_argument("--model_name_or_path", default=None, help="the source, as dLLM 0.1 names it")
    parser.add_argument("--output_dir", default=None, type=Path, help="the target, as dLLM 0.1 names it")
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with `source` and `target` however they were named. Unless each is given once, the program ends.

    Example:
        >>> parser = conversion_parser("convert", "Convert a model.", "a folder")
        >>> options = parsed(parser, ["--model_name_or_path", "old", "--output_dir", "new"])
        >>> options.source, options.target.name
        ('old', 'new')
    """
    options = parser.parse_args(arguments)
    for name, other in (("source", options.model_name_or_path), ("target", options.output_dir)):
        given = [value for value in (getattr(options, name), other) if value is not None]
        if len(given) != 1:
            parser.error(f"expected one {name}, got {len(given)}")
        setattr(options, name, given[0])
    return options
