"""Mapping: what an official checkpoint becomes in transformers. Names of tensors and fields, and what no file says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import transformers

from dllm.fast.model import MARKER

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Fused:
    """One official tensor that is several tensors in transformers, one below the other.

    Attributes:
        name: the official name, with "{}" for the number of the layer and without ".weight".
        parts: the names in transformers, in the order of the rows.
        rows: number of rows of each part.
    """

    name: str
    parts: tuple[str, ...]
    rows: tuple[int, ...]

    def slices(self) -> Iterator[tuple[str, slice]]:
        """Every part with its rows.

        Example:
            >>> list(Fused("qkv", ("q", "k"), (4, 2)).slices())
            [('q', slice(0, 4, None)), ('k', slice(4, 6, None))]
        """
        start = 0
        for part, rows in zip(self.parts, self.rows, strict=True):
            yield part, slice(start, start + rows)
            start += rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """How one official checkpoint becomes a model of transformers, and back.

    Attributes:
        family: the family's name.
        model_class: name of the transformers class.
        official: the official configuration, as it is in config.json.
        fields: fields of transformers' configuration.
        field_names: official names of these fields, where they have one: {field of transformers: official fields}.
        renamed: (official, transformers) names of modules and parameters, "{}" for a number. Other names are equal.
        fused: official tensors that are several in transformers.
        right_shift: the logits for position p are those at p - 1.
        mask_token_id: None if no file of the checkpoint names it.
        block_size: of block-causal attention; None if every position attends to all.
    """

    family: str
    model_class: str
    official: dict[str, Any]
    fields: dict[str, Any]
    field_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    renamed: tuple[tuple[str, str], ...] = ()
    fused: tuple[Fused, ...] = ()
    right_shift: bool = False
    mask_token_id: int | None = None
    block_size: int | None = None

    def config(self) -> transformers.PretrainedConfig:
        """The configuration of transformers, with the marker that keeps the family.

        Raises:
            ValueError: transformers rejects a value, or the mask token has no row in the embedding.
        """
        kind = getattr(transformers, self.model_class).config_class
        config = kind(**self.fields)
        mask, last = self.mask_token_id, config.vocab_size - (self.family != "a2d")  # of A2D a row can be added
        if mask is not None and not (type(mask) is int and 0 <= mask <= last):
            raise ValueError(f"mask_token_id must be an id from 0 to {last}, got {mask!r}")
        config.architectures = [self.model_class]
        config.use_cache = False
        config.is_causal = False
        config.mask_token_id = self.mask_token_id
        setattr(config, MARKER, self.marker())
        return config

    def restored(self, saved: dict[str, Any]) -> transformers.PretrainedConfig:
        """The configuration that transformers 5 saved, for transformers 4, which would take the base of the rotary
        embedding and the number of experts for missing.

        Args:
            saved: the content of config.json.
        """
        config = self.config()
        for name, value in saved.items():
            if hasattr(config, name) and name not in ("model_type", "transformers_version", "rope_scaling"):
                setattr(config, name, value)
        return config

    def marker(self) -> dict[str, Any]:
        """The content of the marker, as JSON types."""
        marker = dict(family=self.family, bidirectional=True, right_shift=self.right_shift)
        if self.block_size is not None:
            marker["block_size"] = self.block_size
        return marker | {"official": self.official}

    def to_transformers(self, name: str) -> list[tuple[str, slice | None]]:
        """Names in transformers of an official tensor, each with its rows; None: all rows.

        The name may be that of a module or of an adapter's tensor, too.
        """
        for fused in self.fused:
            if (renamed := _renamed(name, fused.name, fused.parts)) is not None:
                return list(zip(renamed, (rows for _, rows in fused.slices()), strict=True))
        return [(_first(name, self.renamed), None)]

    def to_official(self, name: str) -> tuple[str, slice | None]:
        """The official name of a tensor in transformers, and the rows that it has there; None: all rows."""
        for fused in self.fused:
            for part, rows in fused.slices():
                if (renamed := _renamed(name, part, (fused.name,))) is not None:
                    return renamed[0], rows
        return _first(name, ((ours, official) for official, ours in self.renamed)), None


def _first(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """The name under the first pair that fits it; the name itself if none does."""
    for old, new in pairs:
        if (renamed := _renamed(name, old, (new,))) is not None:
            return renamed[0]
    return name


def _renamed(name: str, old: str, new: tuple[str, ...]) -> list[str] | None:
    """`name` with its beginning `old` replaced by each of `new`; None if it does not begin with `old`."""
    number = _NUMBER.search(name) if "{}" in old else None
    if "{}" in old and number is None:
        return None
    index = "" if number is None else number.group()
    beginning = old.replace("{}", index)
    if name != beginning and not name.startswith(f"{beginning}."):
        return None
    return [n.replace("{}", index) + name[len(beginning) :] for n in new]


def marker_of(config: Any) -> dict[str, Any]:
    """The marker in a configuration of transformers; empty if it has none.

    Example:
        >>> from transformers import LlamaConfig
        >>> marker_of(LlamaConfig())
        {}
    """
    marker = getattr(config, MARKER, None)
    return marker if isinstance(marker, dict) else {}
