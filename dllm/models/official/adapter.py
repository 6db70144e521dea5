"""LoRA adapters that were trained on an official checkpoint: their modules and tensors under transformers' names."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from dllm.models.official.mapping import Mapping

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_PART = re.compile(r"\.(lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)(?:\..*)?)$")
# Choices of modules that the list of names replaces.
CHOICES = ("exclude_modules", "layers_pattern", "layers_to_transform")


@contextlib.contextmanager
def in_transformers_names(folder: Path, mapping: Mapping | None) -> Iterator[Path]:
    """A folder with the adapter under transformers' names: the given one if it has them already, else a temporary one.

    `attn_out` of LLaDA becomes `self_attn.o_proj`, and so on; `ff_out` is the head or a down projection, which the
    names of the tensors tell. An adapter of q, k and v in one tensor becomes three with the same A and the rows of B.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.
        mapping: of the base model; None if it is not official.

    Raises:
        ValueError: a setting of the adapter cannot be renamed.
    """
    if mapping is None or not (mapping.renamed or mapping.fused):
        yield folder
        return
    tensors = load_file(folder / WEIGHTS)
    if not any(_official(name, mapping) for name in tensors):
        yield folder
        return
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as place:
        renamed = {new: part for name, tensor in tensors.items() for new, part in _renamed(name, tensor, mapping)}
        save_file(renamed, Path(place) / WEIGHTS, metadata={"format": "pt"})
        (Path(place) / CONFIG).write_text(json.dumps(_renamed_config(config, tensors, mapping)), encoding="utf-8")
        yield Path(place)


def _official(name: str, mapping: Mapping) -> bool:
    """Whether a tensor has another name in transformers."""
    name = name.removeprefix(PREFIX)
    return mapping.to_transformers(name)[0][0] != name


def _renamed(name: str, tensor: Tensor, mapping: Mapping) -> Iterator[tuple[str, Tensor]]:
    """A tensor under its name in transformers; of fused modules, the parts."""
    part = _PART.search(name)
    by_rows = part is None or part[1].startswith(("lora_B", "lora_magnitude_vector"))
    for new, rows in mapping.to_transformers(name.removeprefix(PREFIX)):
        piece = tensor if rows is None or not by_rows else tensor[rows]
        yield PREFIX + new, piece.clone() if rows is not None else piece


def _renamed_config(config: dict[str, Any], tensors: dict[str, Tensor], mapping: Mapping) -> dict[str, Any]:
    """The settings of the adapter, with every module by its full name in transformers."""
    adapted = {_module(name) for name in tensors if _PART.search(name)}
    saved = {_module(name) for name in tensors if not _PART.search(name)}
    changed = {"target_modules": _names(adapted, mapping), **dict.fromkeys(CHOICES)}
    if config.get("modules_to_save"):
        changed["modules_to_save"] = _names(saved, mapping)
    for pattern in ("rank_pattern", "alpha_pattern"):
        values = {}
        for module in sorted(adapted):
            for key, value in (config.get(pattern) or {}).items():
                if re.match(rf"(.*\.)?({key})$", module):
                    values |= dict.fromkeys(_names({module}, mapping), value)
        changed[pattern] = values
    for setting in ("target_parameters", "layer_replication"):
        if config.get(setting):
            raise ValueError(f"an adapter with {setting} cannot be renamed, got {config[setting]}")
    return config | {name: value for name, value in changed.items() if name in config}


def _module(name: str) -> str:
    """The module that a tensor of an adapter belongs to."""
    name = name.removeprefix(PREFIX)
    part = _PART.search(name)
    return name[: part.start()] if part else name.rpartition(".")[0]


def _names(modules: set[str], mapping: Mapping) -> list[str]:
    return sorted(new for module in modules for new, _ in mapping.to_transformers(module))
