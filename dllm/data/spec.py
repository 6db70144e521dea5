"""How data sets are named: `name[train:5000,test:100]`, several joined by + or |."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SETTINGS = re.compile(r"\s*[A-Za-z_]\w*\s*=[^=,\[\]]*(,\s*[A-Za-z_]\w*\s*=[^=,\[\]]*)*")
_BRACKETS = re.compile(r"\[[^\[\]]*\]")
_JOINTS = re.compile(r"[+|](?![^\[\]]*\])")
# Settings that are no count of rows.
_KEYS = ("name", "lang", "weight", "by")
UNITS = ("paragraph", "line", "document")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One data set of a specification.

    Attributes:
        name: a file, a folder, or a name on the Hub.
        counts: rows to take of a split, for the splits that are named.
        part: of the data set, called its configuration on the Hub; None for what it has by default.
        language: that rows are in, None for all.
        weight: its share of a mixture, None outside of one.
        unit: what a row of a text file is: a paragraph, a line or the whole document.

    Raises:
        ValueError: a count below 1, a weight that is not positive, an unknown unit.
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
    """A name with settings in brackets, `name[key:value,...]`, whole numbers as integers; or settings alone,
    `key=value,...`, all of them texts, and no name.

    Raises:
        ValueError: brackets that do not close, or a setting that is none.

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
    """The data sets that a specification joins by + or |; a + inside a name that exists is part of it.

    Raises:
        ValueError: what cannot be read, an unknown setting, weights for some data sets only.

    Example:
        >>> [(source.name, source.counts) for source in read_sources("a[train:5] + b|c[lang:python]")]
        [('a', {'train': 5}), ('b', {}), ('c', {})]
    """
    if not text or not text.strip():
        raise ValueError(f"expected the name of a data set, name[split:count,...], got {text!r}")
    one = Path(_BRACKETS.sub("", text).strip()).exists()
    sources = [_source(part) for part in ([text] if one else _JOINTS.split(text))]
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
