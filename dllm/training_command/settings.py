"""The settings of a run: from a YAML file and from flags, every one of them checked by name and type."""

from __future__ import annotations

import enum
import textwrap
import typing
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dllm.configs import DataArguments, ModelArguments, TrainingArguments, check_name
from dllm.core.trainers import MDLMConfig
from dllm.recipes import RECIPES, Recipe
from dllm.startup import SECRET
from dllm.training_command.values import kinds_of, typed
from dllm.training_command.yaml_file import yaml_settings


class Settings(NamedTuple):
    """What :func:`~dllm.recipes.run` takes, and which names were given."""

    recipe: Recipe
    model: ModelArguments
    data: DataArguments
    training: MDLMConfig
    given: frozenset[str]


class Known(NamedTuple):
    """One setting that may be given: whose it is, its type, what it is unless given, and what it says of itself."""

    owner: type
    kind: Any
    default: Any
    help: str


def read_settings(words: Sequence[str]) -> Settings:
    """The settings that a command line gives.

    Args:
        words: `[FILE.yaml] --name value --name=value ...`; a name alone is `true`. Flags go over the file. `task` names
            the recipe, sft if it is not given; every other name is a field of the recipe's argument classes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a name that is not known (the nearest one is named), a value of another type, a name given twice, a
            file that holds no settings, and what the argument classes refuse.

    Example:
        >>> words = "--task pt --model_name_or_path some/model --dataset_args books --output_dir out --report_to none"
        >>> read_settings(words.split()).training.output_dir
        'out'
    """
    given = {}
    if words and not words[0].startswith("--"):
        given, words = from_file(Path(words[0])), words[1:]
    given = given | from_flags(words)
    task = given.pop("task", "sft")
    check_name("task", str(task), RECIPES)
    recipe = RECIPES[task]
    known = known_settings(recipe)
    for name in given:
        check_name("the configuration", name, ["task", *known])
    given = {name: typed(name, value, known[name].kind) for name, value in given.items()}
    if not given.get("output_dir"):
        raise ValueError("output_dir must name the folder for the checkpoints, got nothing")
    parts = {
        owner: owner(**{name: value for name, value in given.items() if known[name].owner is owner})
        for owner in _owners(recipe)
    }
    return Settings(recipe, *parts.values(), frozenset(given))


def from_file(path: Path) -> dict[str, Any]:
    """The settings of a YAML file. A value is the text that stands there, as on a command line, so that `no` is a word
    where a field takes words, and false where it takes truth values; `null` is no value. Inside lists and mappings,
    whose fields have no types, values are those of YAML 1.2: of the words only true and false are truth values.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no YAML, no mapping of names to values, or names one of them twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return yaml_settings(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def from_flags(words: Sequence[str]) -> dict[str, Any]:
    """The settings of a command line, values as texts; several words after a name are a list.

    Raises:
        ValueError: a word that belongs to no name, or a name given twice.

    Example:
        >>> from_flags(["--learning-rate", "1e-4", "--bf16", "--seed=3", "--label_names", "a", "b"])
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


def known_settings(recipe: Recipe) -> dict[str, Known]:
    """Every setting of a recipe, by name.

    Example:
        >>> known_settings(RECIPES["pt"])["insert_eos"].default
        True
    """
    known = {}
    for owner in _owners(recipe):
        kinds = typing.get_type_hints(owner)
        for field in fields(owner):
            if field.init:
                default = field.default if field.default_factory is MISSING else field.default_factory()
                told = field.metadata.get("help", "")
                known[field.name] = Known(owner, kinds[field.name], default, " ".join(told.split()))
    return known


def listing(recipe: Recipe) -> str:
    """Every setting with its type, default and meaning, as `--help` shows it; those that are transformers' own by their
    names."""
    known = known_settings(recipe)
    shown = [
        f"  --{name} {_kind(one)}  {one.help} [{one.default}]" for name, one in known.items() if _is_ours(name, one)
    ]
    others = ", ".join(name for name, one in known.items() if not _is_ours(name, one))
    return "\n".join([*shown, "", "and the fields of transformers.TrainingArguments:", *_wrapped(others)])


def written(settings: Settings) -> str:
    """The settings as YAML, from which the same run starts: those of dllm all, those of transformers where given.

    Example:
        >>> words = "--model_name_or_path some/model --dataset_args chats --output_dir out --report_to none --seed 3"
        >>> "seed: 3" in written(read_settings(words.split()))
        True
    """
    known = known_settings(settings.recipe)
    parts = {type(part): part for part in (settings.model, settings.data, settings.training)}
    names = [name for name, one in known.items() if name in settings.given or _is_ours(name, one)]
    values = {name: _plain(getattr(parts[known[name].owner], name)) for name in names if name not in SECRET}
    return yaml.safe_dump({"task": settings.recipe.name, **values}, sort_keys=False, width=120)


def _owners(recipe: Recipe) -> tuple[type, type, type]:
    return recipe.model_arguments, recipe.data_arguments, MDLMConfig


def _is_ours(name: str, one: Known) -> bool:
    """Whether dllm has the setting, or its default."""
    return one.owner is not MDLMConfig or name in (*TrainingArguments.__annotations__, *MDLMConfig.__annotations__)


def _kind(one: Known) -> str:
    return "|".join("none" if kind is type(None) else kind.__name__ for kind in kinds_of(one.kind))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 116, initial_indent="  ", subsequent_indent="  ")


def _plain(value: Any) -> Any:
    """As YAML can write it."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
