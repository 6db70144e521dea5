"""Texts of settings: converted to the type of a field, and checked."""

from __future__ import annotations

import enum
import json
import types
import typing
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NONE = ("none", "null", "~")


def parse_value(name: str, value: Any, kind: Any) -> Any:
    """Convert a value to the type of its field.

    For a union, the first type counts that the text can be read as, in this order: bool, int, float, dict or list
    (written as JSON), str, None, list (the text split at commas).

    Args:
        name: name of the field, for error messages.
        value: text, or a list, mapping or None from a YAML file.
        kind: type of the field, possibly a union.

    Raises:
        ValueError: the value fits none of the field's types.

    Example:
        >>> parse_value("dropout", "1e-4", float), parse_value("lora", "yes", bool), parse_value("bias", "no", str)
        (0.0001, True, 'no')
        >>> parse_value("seed", "many", int)
        Traceback (most recent call last):
        ...
        ValueError: seed must be int, got 'many'
    """
    runtime_types = [_runtime_type(member) for member in union_members(kind)]
    for candidate in _candidates(value):
        if type(candidate) in runtime_types:
            return candidate
    raise ValueError(f"{name} must be {' or '.join(type_names(kind))}, got {value!r}")


def union_members(kind: Any) -> tuple[Any, ...]:
    """The member types of a union; a tuple of one for any other type.

    Example:
        >>> union_members(int | None)
        (<class 'int'>, <class 'NoneType'>)
    """
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def type_names(kind: Any) -> list[str]:
    """The names of a union's member types.

    Example:
        >>> type_names(int | list[str] | None)
        ['int', 'list', 'none']
    """
    return ["none" if one is type(None) else getattr(one, "__name__", str(one)) for one in union_members(kind)]


def _candidates(value: Any) -> Iterator[Any]:
    """The values that a text can be read as, in order of preference. A value that is not text is its own candidate."""
    if not isinstance(value, str):
        yield value
        if type(value) is int:
            yield float(value)
        return
    if value.lower() in _BOOLS:
        yield _BOOLS[value.lower()]
    for number in (int, float):
        with suppress(ValueError):
            yield number(value.replace(".inf", "inf").replace(".nan", "nan"))
    if value.lstrip().startswith(("{", "[")):
        with suppress(ValueError):
            yield json.loads(value)
    yield value
    if value.lower() in _NONE:
        yield None
    yield [word.strip() for word in value.split(",")]


def _runtime_type(kind: Any) -> Any:
    """The class of a type's values at run time: list for list[str], str for an enum, whose members are texts."""
    kind = typing.get_origin(kind) or kind
    return str if isinstance(kind, type) and issubclass(kind, enum.Enum) else kind


def check_unicode(text: str) -> None:
    """Check that a text is Unicode.

    Raises:
        ValueError: it holds half of a surrogate pair, as Python reads a byte that is no UTF-8.

    Example:
        >>> check_unicode(b"caf\\xe9".decode("utf-8", "surrogateescape"))
        Traceback (most recent call last):
        ...
        ValueError: a text must be UTF-8, got other bytes at character 3
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a text must be UTF-8, got other bytes at character {error.start}") from None
