"""Checkpoint files: the safetensors of a model, whole or in shards, checked and read one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(slots=True)
class OpenFile:
    """The file that was read last. Opening another one closes it, so that one shard is in memory at a time."""

    path: Path | None = None
    handle: object = None

    def get(self, path: Path, name: str) -> Tensor:
        """A tensor of a file."""
        if path != self.path:
            self.handle = None
            self.handle, self.path = safe_open(path, framework="pt"), path
        return self.handle.get_tensor(name)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file, read when it is used.

    `from_pretrained` takes it in a state dict as it takes the tensors of its own files: transformers 5 reads it by
    `[...]`, transformers 4 by `.to(device)`.

    Attributes:
        path: the file.
        name: its name there.
        shape: of the rows that are used.
        dtype: as stored.
        files: what reads it.
        rows: the rows that are used; None: all.
        copied: whether it is read as a copy. Else it is a view of the mapped file, which stays open with it.
    """

    path: Path
    name: str
    shape: torch.Size
    dtype: torch.dtype
    files: OpenFile
    rows: slice | None = None
    copied: bool = False

    def __getitem__(self, index: object) -> Tensor:
        whole = self.files.get(self.path, self.name)
        read = (whole if self.rows is None else whole[self.rows])[index]
        return read.clone() if self.copied else read

    def to(self, *arguments: object, **options: object) -> Tensor:
        """The tensor, read and moved or converted as `Tensor.to` does."""
        return self[...].to(*arguments, **options)

    def is_floating_point(self) -> bool:
        """True: other tensors are refused when the file is opened."""
        return True

    def part(self, rows: slice) -> StoredTensor:
        """Some rows of this tensor."""
        shape = torch.Size((len(range(*rows.indices(self.shape[0]))), *self.shape[1:]))
        return replace(self, shape=shape, rows=rows)


def stored_tensors(find: Callable[[str], Path | None], source: str) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint by their names. Only the heads of the files are read.

    Args:
        find: gives the path of a file of the checkpoint, None if it does not exist.
        source: the checkpoint's folder or name, for errors.

    Raises:
        OSError: there is no safetensors file, a shard is missing or damaged, or lacks a tensor that the index lists.
    """
    whole = find(WEIGHTS)
    index = None if whole else find(INDEX)
    if whole is None and index is None:
        raise OSError(f"{source} must hold its weights in {WEIGHTS} or in shards that {INDEX} lists, got neither")
    if whole is not None:
        return _tensors_of(whole, OpenFile())
    listed = _listed(index)
    files, found = OpenFile(), {}
    for name in sorted(set(listed.values())):
        path = find(name)
        if path is None:
            lost = next(key for key, file in listed.items() if file == name)
            raise OSError(f"the shard {name} that {INDEX} lists is missing at {source}; among others it has {lost}")
        found |= {key: tensor for key, tensor in _tensors_of(path, files).items() if listed.get(key, name) == name}
    for key, name in listed.items():
        if key not in found:
            raise OSError(f"{INDEX} lists {key} in {name}, which does not have it")
    return found


def _listed(index: Path) -> dict[str, str]:
    """The file of each tensor."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        plain = all(Path(file).name == file for file in listed.values())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise OSError(f"{index} must be JSON with a weight_map: {type(error).__name__}: {error}") from error
    if not listed or not plain:
        raise OSError(f"the weight_map in {index} must name files of its own folder")
    return listed


def _tensors_of(path: Path, files: OpenFile) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, framework="pt") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}
            kinds = {name: DTYPES.get(part.get_dtype()) for name, part in slices.items()}
            shapes = {name: torch.Size(part.get_shape()) for name, part in slices.items()}
    except SafetensorError as error:
        raise OSError(f"{path} is damaged, or was not written to its end: {error}") from error
    for name, kind in kinds.items():
        if kind is None:
            expected = ", ".join(DTYPES)
            raise OSError(f"{name} in {path} must have a dtype of {expected}, got {slices[name].get_dtype()}")
    return {name: StoredTensor(path, name, shapes[name], kinds[name], files) for name in kinds}
