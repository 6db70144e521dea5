"""YAML as a file of settings has it: words are words."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

_TAG = "tag:yaml.org,2002:"
_REPLACED = {_TAG + kind for kind in ("bool", "float", "int", "timestamp")}
# as YAML 1.2 has them, each with the characters that it may begin with
_WORDS = {
    "bool": (r"(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "int": (r"[-+]?[0-9]+$", "-+0123456789"),
    "float": (
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    """Words and numbers of YAML 1.2: `no` is a text, 1e-4 a number, 012 is twelve, 12:30 and dates are texts."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {
        first: [(tag, pattern) for tag, pattern in known if tag not in _REPLACED]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


for kind, (pattern, first) in _WORDS.items():
    _Loader.add_implicit_resolver(_TAG + kind, re.compile(pattern), list(first))
_Loader.add_constructor(_TAG + "int", lambda loader, node: int(loader.construct_scalar(node)))


def yaml_settings(text: bytes | str) -> dict[str, Any]:
    """The values by name: scalars as the texts that stand there, None for null; lists and mappings as YAML 1.2.

    Raises:
        yaml.YAMLError: it is no YAML.
        ValueError: it is no mapping of texts to values, or has a name twice.

    Example:
        >>> yaml_settings("eval_strategy: no\\nseed: 7\\neval_steps: null\\nlr_scheduler_kwargs: {min_lr: 1e-6}")
        {'eval_strategy': 'no', 'seed': '7', 'eval_steps': None, 'lr_scheduler_kwargs': {'min_lr': 1e-06}}
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            kind = "NoneType" if node is None else {yaml.SequenceNode: "list"}.get(type(node), "one value")
            raise ValueError(f"must hold lines `name: value`, got {kind}")
        names = [key.value for key, _ in node.value if key.tag != _TAG + "merge"]
        if twice := [name for number, name in enumerate(names) if name in names[:number]]:
            raise ValueError(f"must give {twice[0]} once, got it twice")
        loader.flatten_mapping(node)
        found = {}
        for key, value in node.value:  # what is merged in comes first
            if key.tag != _TAG + "str":
                raise ValueError(f"must hold lines `name: value`, got the name {key.value!r}")
            as_text = isinstance(value, yaml.ScalarNode) and value.tag != _TAG + "null"
            found[key.value] = value.value if as_text else loader.construct_object(value, deep=True)
        return found
    finally:
        loader.dispose()
