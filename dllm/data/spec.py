"""Parsing specifications of data sets: `name[train:5000,test:100]`, several joined by + or |."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SETTINGS = re.compile(r"\s*[A-Za-z_]\w*\s*=[^=,\[\]]*(,\s*[A-Za-z_]\w*\s*=[^=,\[\]]*)*")
_BRACKETS = re.compile(r"\[[^\[\]]*\]")
_SEPARATORS = re.compile(r"[+|](?![^\[\]]*\])")
# Settings in brackets; every other key is a split with a count of rows.
_KEYS = ("name", "lang", "weight", "by")
UNITS = ("paragraph", "line", "document")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One data set of a specification.

    Attributes:
        name: a file, a folder, or a name on the Hub.
        counts: number of rows to take, by split; other splits are taken whole.
        part: configuration of the data set; None for the default.
        language: language of the rows to take; None for all rows.
        weight: share of a mixture; None outside a mixture.
        unit: the unit of a text file that becomes a row: paragraph, line or document.

    Raises:
        ValueError: a count below 1, a weight that is not positive and finite, or an unknown unit.
    """

    name: str
    counts: dict[str, int] = field(default_factory=dict)
    part: str | None = None
    language: str | None = None
    weight: float | None = None
    unit: str = "paragraph"

    def __post_init__(self):
        for split, count in self.counts.items():
            if count < 1:
                raise ValueError(f"{self.name}[{split}:...] must count at least 1 row, got {count}")
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ValueError(f"the weight of {self.name} must be a positive number, got {self.weight}")
        if self.unit not in UNITS:
            raise ValueError(f"by of {self.name} must be one of {', '.join(UNITS)}, got {self.unit!r}")


def parse_spec(spec: str) -> tuple[str | None, dict[str, Any]]:
    """Parse `name[key:value,...]`, where whole numbers become integers, or `key=value,...`, without a name,
    whose values stay text.

    Raises:
        ValueError: unbalanced brackets, or a setting without key or value.

    Example:
        >>> parse_spec("name[a:b,train:5000]")
        ('name', {'a': 'b', 'train': 5000})
        >>> parse_spec("a=b,train=5000")
        (None, {'a': 'b', 'train': '5000'})
    """
    if _SETTINGS.fullmatch(spec):
        return None, dict(_settings(spec, spec, "="))
    match = re.fullmatch(r"\s*([^\[\]\s][^\[\]]*?)\s*(?:\[([^\[\]]*)\])?\s*", spec)
    if match is None:
        raise ValueError(f"expected name or name[key:value,...], got {spec!r}")
    name, inside = match.groups()
    return name, {key: _whole_number(value) for key, value in _settings(inside or "", spec, ":")}


def read_sources(text: str | None) -> list[Source]:
    """Parse data sets that are joined by + or |. If the text names an existing path, a + in it is part of the name.

    Raises:
        ValueError: invalid syntax, an unknown setting, or weights for only some of the data sets.

    Example:
        >>> [(source.name, source.counts) for source in read_sources("a[train:5] + b|c[lang:python]")]
        [('a', {'train': 5}), ('b', {}), ('c', {})]
    """
    if not text or not text.strip():
        raise ValueError(f"expected the name of a data set, name[split:count,...], got {text!r}")
    one = Path(_BRACKETS.sub("", text).strip()).exists()
    sources = [_source(part) for part in ([text] if one else _SEPARATORS.split(text))]
    weighted = [source for source in sources if source.weight is not None]
    if 0 < len(weighted) < len(sources):
        missing = next(source.name for source in sources if source.weight is None)
        raise ValueError(f"a mixture must have a weight for each of its data sets, got none for {missing}")
    return sources


def _source(text: str) -> Source:
    name, settings = parse_spec(text)
    if name is None:
        raise ValueError(f"expected the name of a data set, got settings alone: {settings}")
    given = {key: settings.pop(key) for key in _KEYS if key in settings}
    for key, value in settings.items():
        if not isinstance(value, int):
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(
                f"{name}[...] takes {', '.join(_KEYS)} and counts of rows, split:count; {key!r} got {value!r}{hint}"
            )
    options: dict[str, Any] = {}
    if "weight" in given:
        options["weight"] = _number(name, given["weight"])
    for key, option in (("name", "part"), ("lang", "language"), ("by", "unit")):
        if key in given:
            options[option] = str(given[key])
    return Source(name=name, counts=settings, **options)


def _number(name: str, text: Any) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"the weight of {name} must be a positive number, got {text!r}") from None


def _settings(listed: str, text: str, sign: str) -> Iterator[tuple[str, str]]:
    for part in filter(None, (part.strip() for part in listed.split(","))):
        key, separator, value = (piece.strip() for piece in part.partition(sign))
        if not (key and separator and value):
            raise ValueError(f"expected key{sign}value in the settings of {text!r}, got {part!r}")
        yield key, value


def _whole_number(text: str) -> int | str:
    return int(text) if re.fullmatch(r"\d+(_\d+)*", text) else text
