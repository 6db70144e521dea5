"""JSON as strictly as its standard has it: what a lenient reader would guess is refused."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from dllm.serve.errors import ApiError

MAX_DEPTH = 32
MAX_NAME = 64  # characters of a name that an error repeats


def read_object(raw: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ApiError: the bytes are none, hold a number that is not finite, a name twice or half a character, or nest deeper
            than :data:`MAX_DEPTH` levels.

    Example:
        >>> read_object(b'{"n": 2}')
        {'n': 2}
        >>> read_object(b'{"n": NaN}')
        Traceback (most recent call last):
        dllm.serve.errors.ApiError: the body must be JSON: numbers must be finite, got NaN
    """
    try:
        found = json.loads(raw.decode("utf-8"), parse_constant=_no_number, object_pairs_hook=_without_doubles)
    except UnicodeDecodeError:
        raise ApiError(400, "the body must be UTF-8, got other bytes", code="invalid_json") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ApiError(400, f"the body must be JSON: {error}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise ApiError(400, f"the body must be a JSON object, got {kind_of(found)}", code="invalid_json")
    _check_values(found)
    return found


def _no_number(word: str) -> None:
    raise ValueError(f"numbers must be finite, got {word}")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"each name must stand once in an object, got {name[:MAX_NAME]!r} again")
    return found


def _check_values(value: Any) -> None:
    """Check that values are not nested too deep, and that texts have no half characters, which UTF-8 cannot write."""
    layer = [value]
    for _ in range(MAX_DEPTH + 1):
        nested = [child for child in layer if isinstance(child, (dict, list))]
        names = [name for child in nested if isinstance(child, dict) for name in child]
        layer = [each for child in nested for each in (child.values() if isinstance(child, dict) else child)]
        if any(_is_broken(text) for text in (*names, *layer) if isinstance(text, str)):
            raise ApiError(400, "texts must be whole characters, got half of a surrogate pair", code="invalid_json")
        if not layer:
            return
    raise _too_deep()


def _is_broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _too_deep() -> ApiError:
    return ApiError(400, f"the body must nest at most {MAX_DEPTH} levels, got more", code="invalid_json")


def kind_of(value: Any) -> str:
    """What a value is called in JSON.

    Example:
        >>> kind_of([]), kind_of(2.5)
        ('an array', 'a number')
    """
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
