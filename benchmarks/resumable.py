"""Programs that train for long: settings on the command line, the same in a resumed run, and results kept in files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import report
from dllm.exits import usage

_Settings = TypeVar("_Settings")


def add_arguments(parser: argparse.ArgumentParser, settings: type) -> None:
    """Add the folder of the run, an option for each field of a dataclass of settings, and the folder for the row."""
    parser.add_argument("folder", type=Path, help="folder of the run; an existing run is resumed")
    for field in fields(settings):
        name, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        parser.add_argument(name, type=kind, default=field.default, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")


def read_settings(options: argparse.Namespace, settings: type[_Settings]) -> _Settings:
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
