"""The settings of a run, read from a YAML file and from flags, and checked by name and by type.

No command-line library is used. Of transformers' HfArgumentParser, jsonargparse and tyro none offers all of these: a
YAML file checked by the fields' types, `none` for optional fields, the nearest name for a misspelt one. The comparison
is in benchmarks/LOG.md.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dllm.configs import DataArguments, ModelArguments, check_name
from dllm.core.trainers import MDLMConfig
from dllm.recipes import RECIPES, Recipe
from dllm.startup import SECRET
from dllm.training_command.yaml_file import read_yaml
from dllm.values import parse_value, type_names


class Settings(NamedTuple):
    """The arguments of :func:`~dllm.recipes.run`, and the values that the user gave, by name."""

    recipe: Recipe
    model: ModelArguments
    data: DataArguments
    training: MDLMConfig
    given: Mapping[str, Any]


class Setting(NamedTuple):
    """One setting: the argument class that has it as a field, and the field's type, default and help text."""

    owner: type
    kind: Any
    default: Any
    help: str

    def is_ours(self, name: str) -> bool:
        """Whether dllm defines the field or its default, rather than transformers."""
        ours = (kind for kind in self.owner.__mro__ if kind.__module__.startswith("dllm."))
        return any(name in vars(kind).get("__annotations__", {}) for kind in ours)


def read_settings(words: Sequence[str]) -> Settings:
    """Read the settings of a run from a command line.

    Args:
        words: `[FILE.yaml] --name value --name=value ...`. A name without a value means `true`. Flags override the
            file. `task` names the recipe (default: sft); every other name is a field of the recipe's argument classes.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: an unknown name (the message has the nearest known one), a value of the wrong type, a name given
            twice, a file without settings, or values that the argument classes refuse.

    Example:
        >>> words = "--task pt --model_name_or_path some/model --dataset_args books --output_dir out --report_to none"
        >>> read_settings(words.split()).training.output_dir
        'out'
    """
    path = Path(words[0]) if words and not words[0].startswith("--") else None
    in_file = read_yaml(path) if path else {}
    in_flags = read_flags(words[1:] if path else words)
    task = str((in_file | in_flags).get("task", "sft"))
    check_name("task", task, RECIPES)
    recipe = RECIPES[task]
    known = known_settings(recipe)
    given = _checked(in_file, known, f"{path}: ") | _checked(in_flags, known, "")
    if not given.get("output_dir"):
        raise ValueError("output_dir must name the folder for the checkpoints, got nothing")
    parts = [
        owner(**{name: value for name, value in given.items() if known[name].owner is owner})
        for owner in _argument_classes(recipe)
    ]
    return Settings(recipe, *parts, given)


def read_flags(words: Sequence[str]) -> dict[str, Any]:
    """The values of the flags by name, as text. Several words after a name become a list.

    Raises:
        ValueError: a word before the first name, or a name given twice.

    Example:
        >>> read_flags(["--learning-rate", "1e-4", "--bf16", "--seed=3", "--label_names", "a", "b"])
        {'learning_rate': '1e-4', 'bf16': 'true', 'seed': '3', 'label_names': ['a', 'b']}
    """
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, sign, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name in found:
                raise ValueError(f"--{name} must be given once, got it twice")
            found[name] = [value] if sign else []
        elif found:
            next(reversed(found.values())).append(word)
        else:
            raise ValueError(f"expected --name value, got {word!r}")
    return {name: values if len(values) > 1 else (values or ["true"])[0] for name, values in found.items()}


def known_settings(recipe: Recipe) -> dict[str, Setting]:
    """All settings of a recipe, by name.

    Example:
        >>> known_settings(RECIPES["pt"])["insert_eos"].default
        True
    """
    known = {}
    for owner in _argument_classes(recipe):
        kinds = typing.get_type_hints(owner)
        for field in fields(owner):
            if field.init:
                default = field.default if field.default_factory is MISSING else field.default_factory()
                text = " ".join(field.metadata.get("help", "").split())
                known[field.name] = Setting(owner, kinds[field.name], default, text)
    return known


def help_text(recipe: Recipe) -> str:
    """The settings as `--help` shows them, with type and default; those of dllm first, with a meaning."""
    known = known_settings(recipe)
    ours, theirs = [], []
    for name, one in known.items():
        typed = f"  --{name} {'|'.join(type_names(one.kind))}"
        if one.is_ours(name):
            ours.append(f"{typed}  {one.help} [{one.default}]")
        else:
            theirs.append(f"{typed} [{getattr(one.default, 'value', one.default)}]")
    return "\n".join([*ours, "", "and the other fields of transformers.TrainingArguments:", *theirs])


def to_yaml(settings: Settings) -> str:
    """The settings as YAML that starts the same run: every given value, and the defaults that dllm defines. Access
    tokens of the Hub are left out.

    Example:
        >>> words = "--model_name_or_path some/model --dataset_args chats --output_dir out --report_to none --seed 3"
        >>> "seed: 3" in to_yaml(read_settings(words.split()))
        True
    """
    values = {"task": settings.recipe.name}
    for name, one in known_settings(settings.recipe).items():
        if name not in SECRET and (name in settings.given or one.is_ours(name)):
            values[name] = parse_value(name, settings.given.get(name, one.default), one.kind)
    return yaml.safe_dump(values, sort_keys=False, width=120)


def _argument_classes(recipe: Recipe) -> tuple[type, type, type]:
    return recipe.model_arguments, recipe.data_arguments, recipe.training_arguments


def _checked(values: Mapping[str, Any], known: Mapping[str, Setting], source: str) -> dict[str, Any]:
    """The values, converted to their fields' types. Error messages begin with `source`."""
    try:
        for name in values:
            check_name("the configuration", name, ["task", *known])
        return {name: parse_value(name, value, known[name].kind) for name, value in values.items() if name != "task"}
    except ValueError as error:
        raise ValueError(f"{source}{error}") from error
