"""The YAML files of this folder, read and checked: one for each family and era."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

FOLDER = Path(__file__).parent
SECTIONS = ("base", "instruct", "any")
_FILE = {"family": str, "era": str, "source": str, "model": str, "model_args": dict} | dict.fromkeys(SECTIONS, dict)
_ROW = {
    "runs": str,
    "shots": int,
    "new_tokens": int,
    "steps": int,
    "block_size": int,
    "temperature": float,
    "top_p": float,
    "mc_num": int,
    "cfg_scale": float,
    "check_greedy": bool,
}
_LEAST = {"shots": 0, "new_tokens": 1, "steps": 1, "block_size": 1, "temperature": 0, "mc_num": 1, "cfg_scale": 0}


class Table(NamedTuple):
    """One file.

    family, era: its name is FAMILY-ERA.yaml.
    source: where the settings were read.
    model: the model's name for lm-eval.
    model_args: arguments of every line.
    sections: "base" and "instruct", or "any" where both are the same: a line for each task.
    """

    family: str
    era: str
    source: str
    model: str
    model_args: Mapping[str, Any]
    sections: Mapping[str, Mapping[str, Mapping[str, Any]]]

    def lines(self, instruct: bool) -> Mapping[str, Mapping[str, Any]]:
        """The lines for an instruct model, or for a base model, by task."""
        return self.sections.get("any") or self.sections["instruct" if instruct else "base"]


@functools.cache
def tables() -> Mapping[tuple[str, str], Table]:
    """Every table of the package by (family, era).

    Raises:
        ValueError: a file breaks a rule, see :func:`read_table`.

    Example:
        >>> sorted(tables())
        [('bert', 'slurm'), ('dream', 'slurm'), ('llada', 'slurm')]
    """
    read = [read_table(path) for path in sorted(FOLDER.glob("*.yaml"))]
    return MappingProxyType({(table.family, table.era): table for table in read})


def read_table(path: Path) -> Table:
    """Read and check a file.

    Each line has `shots`, and `new_tokens` or `mc_num` or both. Optional: `runs`, the name in lm-eval if that is
    another one; `steps`, else as many as new tokens; `block_size`, `temperature`, `top_p`, `cfg_scale`, `check_greedy`.

    Raises:
        ValueError: an unknown or a missing key, a value of another type or out of range, a file of another name,
            neither "any" nor both of "base" and "instruct".
    """
    held = yaml.safe_load(path.read_text(encoding="utf-8"))
    _check(str(path), held, _FILE, ("family", "era", "source", "model"))
    if path.stem != f"{held['family']}-{held['era']}":
        raise ValueError(f"{path} must be named {held['family']}-{held['era']}.yaml")
    sections = {name: held.pop(name) for name in SECTIONS if name in held}
    if set(sections) not in ({"any"}, {"base", "instruct"}):
        raise ValueError(f"{path} must have the section any, or base and instruct, got {', '.join(sections) or 'none'}")
    for section, lines in sections.items():
        for task, line in lines.items():
            _check_line(f"{path}: {section}: {task}", line)
    return Table(**{"model_args": {}} | held, sections=sections)


def _check_line(where: str, line: object) -> None:
    _check(where, line, _ROW, ("shots",))
    if not {"new_tokens", "mc_num"} & set(line):
        raise ValueError(f"{where} must have new_tokens or mc_num")
    for name, least in _LEAST.items():
        if line.get(name, least) < least:
            raise ValueError(f"{where}: {name} must be at least {least}, got {line[name]}")
    if not 0 < line.get("top_p", 1) <= 1:
        raise ValueError(f"{where}: top_p must lie in (0, 1], got {line['top_p']}")


def _check(where: str, held: object, types: Mapping[str, type], required: Iterable[str]) -> None:
    if not isinstance(held, dict):
        raise ValueError(f"{where} must be a mapping, got {held!r}")
    for name, value in held.items():
        if name not in types:
            raise ValueError(f"{where} knows no {name!r}, only {', '.join(types)}")
        if type(value) is not types[name]:
            raise ValueError(f"{where}: {name} must be of type {types[name].__name__}, got {value!r}")
    missing = [name for name in required if name not in held]
    if missing:
        raise ValueError(f"{where} must have {', '.join(missing)}")
