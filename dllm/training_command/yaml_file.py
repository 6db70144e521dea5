"""Reading a YAML file of settings. Scalars stay text until the type of their field is known: `no` may be a word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """A loader for the core schema of YAML 1.2 (section 10.3). PyYAML implements YAML 1.1. The differences: `no`, 12:30
    and dates are text, 1e-4 is a number, 012 is twelve."""

    yaml_implicit_resolvers: ClassVar[dict[str | None, list[Any]]] = {}


for _kind, _pattern in {
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": "<<",
}.items():
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"({_pattern})$"), None)
_Loader.add_constructor(_TAG + "int", lambda loader, node: int(loader.construct_scalar(node)))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the values of a YAML file, by name: scalars as their text, null as None, lists and mappings as in YAML 1.2.
    The encoding is UTF-8, or UTF-16 with a byte order mark.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not YAML, is not a mapping of names to values, or has a name twice.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "run.yaml"
        ...     _ = path.write_text("eval_strategy: no\\neval_steps: null\\nlr_scheduler_kwargs: {min_lr: 1e-6}")
        ...     read_yaml(path)
        {'eval_strategy': 'no', 'eval_steps': None, 'lr_scheduler_kwargs': {'min_lr': 1e-06}}
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        loader = _Loader(path.read_bytes())
        return _values(loader, loader.get_single_node())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def _values(loader: _Loader, root: yaml.Node | None) -> dict[str, Any]:
    if not isinstance(root, yaml.MappingNode):
        found = "nothing" if root is None else {yaml.SequenceNode: "list"}.get(type(root), "one value")
        raise ValueError(f"must hold lines `name: value`, got {found}")
    names = [key.value for key, _ in root.value if key.tag != _TAG + "merge"]
    if repeated := [name for number, name in enumerate(names) if name in names[:number]]:
        raise ValueError(f"must give {repeated[0]} once, got it twice")
    loader.flatten_mapping(root)
    values = {}
    for key, node in root.value:  # merged entries come first, so that the file's own replace them
        if key.tag != _TAG + "str":
            raise ValueError(f"must hold lines `name: value`, got the name {key.value!r}")
        is_text = isinstance(node, yaml.ScalarNode) and node.tag != _TAG + "null"
        values[key.value] = node.value if is_text else loader.construct_object(node, deep=True)
    return values
