"""Export: a saved model back under the official names and the official config.json, the exact inverse of loading."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from dllm.models.official import recognise
from dllm.models.official.checkpoint import INDEX, WEIGHTS, StoredTensor, stored_tensors
from dllm.models.official.mapping import Mapping, marker_of

SHARD_BYTES = 5_000_000_000
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
# what loading sets, or transformers writes by itself
NOT_OFFICIAL = ("architectures", "dtype", "is_causal", "model_type", "torch_dtype", "transformers_version", "use_cache")


def export(
    config: transformers.PretrainedConfig,
    find: Callable[[str], Path | None],
    source: str,
    output: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> Mapping:
    """Write a model that was saved in transformers' format into a folder in the official format.

    Tensors are copied bit for bit, one shard in memory at a time. The configuration is the official one with what has
    changed since; code that it names in `auto_map` is not written.

    Args:
        config: of the saved model, with the marker.
        find: gives the path of a file of the saved model, None if it does not exist.
        source: its folder or name, for errors.
        output: an existing folder.
        shard_bytes: largest size of a shard.

    Returns:
        The mapping to the official format.

    Raises:
        OSError: files are missing or damaged.
        ValueError: the model is of no known family, or has changed in a way that its official format cannot say.
    """
    mapping = mapping_of(config, source)
    official = official_config(config, mapping)
    tensors = _official_tensors(mapping, stored_tensors(find, source))
    _write(tensors, output, shard_bytes)
    (output / "config.json").write_text(json.dumps(official, indent=2) + "\n", encoding="utf-8")
    return mapping


def mapping_of(config: transformers.PretrainedConfig, source: str) -> Mapping:
    """The mapping under which a model was loaded.

    Raises:
        ValueError: its configuration has no marker with an official configuration.
    """
    official = marker_of(config).get("official")
    mapping = recognise(official) if isinstance(official, dict) else None
    if mapping is None:
        raise ValueError(f"{source} must hold a model that was loaded from an official checkpoint and saved")
    return mapping


def official_config(config: transformers.PretrainedConfig, mapping: Mapping) -> dict[str, Any]:
    """The official configuration, with the fields that differ from what the mapping gives.

    Raises:
        ValueError: a field has changed that has no official name.
    """
    before, now = mapping.config().to_dict(), config.to_dict()
    changed = {n for n in before.keys() | now.keys() if _differs(before.get(n), now.get(n)) and n not in NOT_OFFICIAL}
    official = dict(mapping.official)
    for name in sorted(changed - {"masked_diffusion", "_name_or_path"}):
        names = mapping.field_names.get(name) or ((name,) if name in official or name in TOKENS else ())
        if not names:
            raise ValueError(
                f"the official config.json of {mapping.family} cannot say that {name} is {now.get(name)!r} instead of "
                f"{before.get(name)!r}"
            )
        official |= dict.fromkeys(names, now.get(name))
    for name in ("dtype", "torch_dtype"):
        if name in official and config.dtype is not None:
            official[name] = str(config.dtype).removeprefix("torch.")
    return official


def _differs(before: Any, now: Any) -> bool:
    return json.dumps(before, default=str, sort_keys=True) != json.dumps(now, default=str, sort_keys=True)


def _official_tensors(mapping: Mapping, stored: dict[str, StoredTensor]) -> dict[str, list[StoredTensor]]:
    """The tensors under their official names, each as the list of parts that are joined by rows."""
    parts: dict[str, dict[int, StoredTensor]] = {}
    for name, tensor in stored.items():
        official, rows = mapping.to_official(name)
        parts.setdefault(official, {})[0 if rows is None else rows.start] = tensor
    for official, found in parts.items():
        wanted = mapping.to_transformers(official)
        if len(found) != len(wanted):
            raise ValueError(f"{official} needs {', '.join(name for name, _ in wanted)}: {len(found)} are there")
    return {official: [found[start] for start in sorted(found)] for official, found in parts.items()}


def _write(tensors: dict[str, list[StoredTensor]], output: Path, shard_bytes: int) -> None:
    """Write shards and their index; a single file if one is enough."""
    shards = list(_shards(tensors, shard_bytes))
    weight_map, total = {}, 0
    for number, names in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        shard = {name: _joined(tensors[name]) for name in names}
        total += sum(tensor.nbytes for tensor in shard.values())
        save_file(shard, output / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (output / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: dict[str, list[StoredTensor]], shard_bytes: int) -> Iterator[list[str]]:
    """Names of the tensors of each shard, in the order of the files that they come from."""
    names: list[str] = []
    size = 0
    for name, parts in tensors.items():
        more = sum(part.shape.numel() * part.dtype.itemsize for part in parts)
        if names and size + more > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += more
    yield names


def _joined(parts: list[StoredTensor]) -> Tensor:
    return parts[0][...] if len(parts) == 1 else torch.cat([part[...] for part in parts])


def copy_others(folder: Path, output: Path) -> list[str]:
    """Copy the files of a folder that are neither weights nor config.json: tokenizer, template, licence.

    Returns:
        Their names.
    """
    copied = []
    for file in sorted(folder.iterdir()):
        weights = file.name == "config.json" or file.name.endswith((".safetensors", ".safetensors.index.json", ".bin"))
        if file.is_file() and not weights:
            shutil.copyfile(file, output / file.name)
            copied.append(file.name)
    return copied
