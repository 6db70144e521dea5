"""Programs that train for long: settings on the command line, the same in a resumed run, and results kept in files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks import report
from dllm.exits import exit_code, usage

_Settings = TypeVar("_Settings")


def main(
    name: str,
    about: str,
    settings: type[_Settings],
    arguments: Sequence[str] | None,
    *,
    measure: Callable[..., Any],
    show: Callable[[_Settings, Any], None],
    slug: str,
    arms: Sequence[str] = (),
) -> int:
    """Run a program of this package from its command line: measure, print the table, write the row.

    Args:
        name: of the module in benchmarks, and the kind of its rows.
        about: the module's docstring; its first line describes the command.
        settings: a dataclass whose fields have defaults; each is an option.
        arguments: the command line; None: that of the process.
        measure: gives the results, as JSON holds them, of the folder of the run, the settings and, if there are arms,
            the chosen ones.
        show: prints the table of settings and results.
        slug: in the name of the row's file.
        arms: names of what can be trained alone, for the option `--arm`.

    Returns:
        The exit code (:mod:`dllm.exits`).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=about.partition("\n")[0], allow_abbrev=False)
    _add_arguments(parser, settings)
    if arms:
        parser.add_argument("--arm", nargs="+", choices=arms, default=arms, help="what to train (default: all)")
    options = parser.parse_args(arguments)

    def run() -> None:
        given = _read_settings(options, settings)
        row = report.new_row(name, f"-m benchmarks.{name}", arguments, torch.device("cpu"))
        results = measure(options.folder, given, *([options.arm] if arms else []))
        show(given, results)
        path = report.write_row(row | {"settings": asdict(given), "results": results}, options.out, slug)
        report.print_last_line({"row": str(path), "results": results})

    return exit_code(name, run)


def _add_arguments(parser: argparse.ArgumentParser, settings: type) -> None:
    """Add the folder of the run, an option for each field of a dataclass of settings, and the folder for the row."""
    parser.add_argument("folder", type=Path, help="folder of the run; an existing run is resumed")
    for field in fields(settings):
        name, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        parser.add_argument(name, type=kind, default=field.default, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")


def _read_settings(options: argparse.Namespace, settings: type[_Settings]) -> _Settings:
    """The settings that were given. Those of a new run are written into its folder.

    Raises:
        UsageError: one is out of range, or the run was begun with others.
    """
    with usage():
        given = settings(**{field.name: getattr(options, field.name) for field in fields(settings)})
        kept = once(options.folder / "settings.json", asdict, given)
        if kept != asdict(given):
            raise ValueError(f"expected the settings of the run in {options.folder}, {kept}, got {asdict(given)}")
    return given


def once(path: Path, work: Callable[..., Any], *arguments: object) -> Any:
    """The result that `path` holds as JSON; without it, the work is done and its result is written there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     once(Path(folder) / "sum.json", sum, [1, 2]), once(Path(folder) / "sum.json", sum, [5])
        (3, 3)
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(work(*arguments), indent=1) + "\n", encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def has_checkpoint(folder: Path) -> bool:
    """Whether a Trainer has left a whole checkpoint in this folder."""
    return any(folder.glob("checkpoint-*/trainer_state.json"))
