"""What is written in a file or on a command line, as the type that a field has."""

from __future__ import annotations

import enum
import json
import types
import typing
from typing import Any

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NOTHING = ("none", "null", "~")


def typed(name: str, value: Any, kind: Any) -> Any:
    """The value in the type of its field.

    A text is read as the first of the field's types that takes it: bool, int, float, dict, text itself, a list with
    commas between. `none` is no value where the field takes no text, else it is that text. Numbers and lists that a
    file holds as such are taken where the field has that type; an int is a float too.

    Args:
        name: of the field, for the message.
        value: what was written: a text, or what YAML made of one.
        kind: a type, or a union of some.

    Raises:
        ValueError: the value is of none of the field's types.

    Example:
        >>> typed("learning_rate", "1e-4", float), typed("eval_steps", 5, float | None), typed("lora", "true", bool)
        (0.0001, 5.0, True)
        >>> typed("seed", "many", int)
        Traceback (most recent call last):
        ...
        ValueError: seed must be int, got 'many'
    """
    kinds = kinds_of(kind)
    if value is None or (_is_nothing(value) and not any(map(_is_text, kinds))):
        if type(None) in kinds:
            return None
    for reader, wanted in _READERS:
        if any(wanted(k) for k in kinds):
            found = reader(value)
            if found is not _NO:
                return found
    raise ValueError(f"{name} must be {' or '.join(_called(k) for k in kinds)}, got {value!r}")


def kinds_of(kind: Any) -> tuple[Any, ...]:
    """The types of a union, one type as a tuple.

    Example:
        >>> kinds_of(int | None)
        (<class 'int'>, <class 'NoneType'>)
    """
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return tuple(inner for part in typing.get_args(kind) for inner in kinds_of(part))
    return (kind,)


_NO = object()  # of a reader: the value is none of this type


def _is_nothing(value: Any) -> bool:
    return isinstance(value, str) and value.lower() in _NOTHING


def _truth(value: Any) -> Any:
    return value if isinstance(value, bool) else _WORDS.get(value.lower(), _NO) if isinstance(value, str) else _NO


def _whole(value: Any) -> Any:
    return _number(value, int)


def _real(value: Any) -> Any:
    return _number(value, float)


def _number(value: Any, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | kind):
        return _NO
    try:
        return kind(value.replace(".inf", "inf").replace(".nan", "nan") if isinstance(value, str) else value)
    except ValueError:
        return _NO


def _mapping(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return _NO
    return value if isinstance(value, dict) else _NO


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else _NO


def _several(value: Any) -> Any:
    if isinstance(value, str):
        value = [word.strip() for word in value.split(",")]
    return value if isinstance(value, list) else _NO


def _text(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        value = value.value
    return value if isinstance(value, str) else _NO


def _is_text(kind: Any) -> bool:
    return kind is str or (isinstance(kind, type) and issubclass(kind, enum.Enum))


def _is_dict(kind: Any) -> bool:
    return kind is dict or typing.get_origin(kind) is dict


def _is_list(kind: Any) -> bool:
    return kind is list or typing.get_origin(kind) is list


_READERS = (
    (_truth, lambda kind: kind is bool),
    (_whole, lambda kind: kind is int),
    (_real, lambda kind: kind is float),
    (_mapping, _is_dict),
    (_listed, _is_list),
    (_text, _is_text),
    (_several, _is_list),
)


def _called(kind: Any) -> str:
    return "none" if kind is type(None) else getattr(kind, "__name__", str(kind))
