"""Loading: the tensors of an official checkpoint, checked against transformers' class and read into it in a stream."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from collections.abc import Mapping as Dictionary
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from dllm.models.official.checkpoint import StoredTensor, stored_tensors
from dllm.models.official.mapping import Mapping, marker_of
from dllm.models.official.prepare import BIAS, keep_float32
from dllm.models.official.vocabulary import with_mask_row

HEAD = "lm_head.weight"
# transformers keeps the state of a load in the process: two at a time spoil each other's weights
ONE_LOAD = threading.RLock()


def load(
    mapping: Mapping,
    config: transformers.PretrainedConfig,
    find: Callable[[str], Path | None],
    source: str,
    **options: Any,
) -> nn.Module:
    """Load an official checkpoint into the class of transformers that it maps to.

    Every name and shape is checked before a weight is read. One shard is open at a time: the peak of memory is the
    model and one shard. An embedding without a row for the mask token is enlarged.

    Args:
        mapping: of the checkpoint.
        config: the configuration that the mapping gave.
        find: gives the path of a file of the checkpoint, None if it does not exist.
        source: the checkpoint's folder or name, which becomes `model.name_or_path`.
        options: of `from_pretrained`, such as dtype and device_map.

    Raises:
        OSError: files are missing or damaged.
        ValueError: a tensor is missing, unknown, or of another shape.
    """
    kind = getattr(transformers, mapping.model_class)
    tensors = _mapped(mapping, stored_tensors(find, source))
    tied = bool(config.tie_word_embeddings)
    _check(tensors, saved_shapes(kind, config), mapping, source, tied=tied)
    if tied:
        tensors.pop(HEAD, None)
    if any(".experts." in name for name in tensors):
        # transformers 5 joins experts, after which no view of their file is left; views of others would keep it open
        tensors = {name: replace(tensor, copied=".experts." not in name) for name, tensor in tensors.items()}
    if is_deepspeed_zero3_enabled():  # it copies tensors into shards that are gathered for it
        tensors = {name: tensor[...] for name, tensor in tensors.items()}
    with _one_after_another():
        model, found = kind.from_pretrained(
            None, config=config, state_dict=tensors, output_loading_info=True, **options
        )
    check_found(found, source, tied=tied)
    keep_float32(model, {name: tensor[...] for name, tensor in tensors.items() if name.endswith(BIAS)})
    with_mask_row(model)
    model.name_or_path = model.config._name_or_path = source
    return model


def restore_biases(model: nn.Module, find: Callable[[str], Path | None], source: str) -> None:
    """Give the routers of a saved LLaDA2 model the float32 biases of its files, which transformers 4 rounds."""
    names = [name for name, buffer in model.named_buffers() if name.endswith(BIAS) and buffer.dtype != torch.float32]
    if names and marker_of(model.config):
        stored = stored_tensors(find, source)
        keep_float32(model, {name: stored[name][...] for name in names})


def saved_shapes(kind: type, config: transformers.PretrainedConfig) -> dict[str, torch.Size]:
    """Names and shapes of a model's tensors as transformers saves them, with every expert on its own.

    transformers 5 keeps the experts of a layer in two tensors, `gate_up_proj` [experts, 2 * width, hidden_size] and
    `down_proj`, which it splits when it saves.
    """
    with torch.device("meta"):
        model = kind(config)
    shapes = {}
    for name, tensor in model.state_dict().items():
        layer, _, part = name.rpartition(".experts.")
        if part == "gate_up_proj":
            count, double, width = tensor.shape
            for half in ("gate_proj", "up_proj"):
                for expert in range(count):
                    shapes[f"{layer}.experts.{expert}.{half}.weight"] = torch.Size((double // 2, width))
        elif part == "down_proj":
            for expert in range(len(tensor)):
                shapes[f"{layer}.experts.{expert}.down_proj.weight"] = tensor.shape[1:]
        else:
            shapes[name] = tensor.shape
    return shapes


def _mapped(mapping: Mapping, stored: Dictionary[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors under transformers' names."""
    mapped: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        targets = mapping.to_transformers(name)
        rows = sum(len(range(*part.indices(part.stop))) for _, part in targets if part is not None)
        if rows and tensor.shape[:1] != (rows,):
            raise ValueError(
                f"{name} in {tensor.path} must have the {rows} rows of its config.json, got {list(tensor.shape)}"
            )
        for ours, part in targets:
            if ours in mapped:
                raise ValueError(
                    f"{tensor.path} has {name}, and {mapped[ours].name} is the same tensor by another name"
                )
            mapped[ours] = tensor if part is None else tensor.part(part)
    return mapped


def _check(
    tensors: Dictionary[str, StoredTensor],
    expected: Dictionary[str, torch.Size],
    mapping: Mapping,
    source: str,
    *,
    tied: bool,
) -> None:
    """Check names and shapes. A head that shares the embedding's weight may be left out."""
    for name, tensor in tensors.items():
        if name not in expected:
            raise ValueError(f"{tensor.path} has {tensor.name}, which no {mapping.family} model of its config.json has")
        if tensor.rows is None and tensor.shape != expected[name]:
            raise ValueError(
                f"{tensor.name} in {tensor.path} must have the shape {list(expected[name])} of its config.json, "
                f"got {list(tensor.shape)}"
            )
        if tensor.shape[1:] != expected[name][1:]:
            raise ValueError(
                f"{tensor.name} in {tensor.path} must have {list(expected[name][1:])} columns, got {list(tensor.shape)}"
            )
    missing = sorted(expected.keys() - tensors.keys() - ({HEAD} if tied else set()))
    if missing:
        official = mapping.to_official(missing[0])[0]
        raise ValueError(f"the weights at {source} lack {official}, in all {len(missing)} of {len(expected)} tensors")


def check_found(found: Any, source: str, *, tied: bool) -> None:
    """Check that transformers loaded all tensors, by what it reports.

    Raises:
        ValueError: some are missing, unexpected or of another shape.
    """
    left = {
        kind: sorted(map(str, set(found[kind]) - ({HEAD} if tied else set())))
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    left = {kind: names for kind, names in left.items() if names}
    if left:
        raise ValueError(
            f"transformers {transformers.__version__} did not load the weights at {source} as a whole: {left}"
        )


@contextlib.contextmanager
def _one_after_another() -> Iterator[None]:
    """Make transformers 5 read tensors when it needs them, and not in threads that run ahead of it."""
    switch = "HF_DEACTIVATE_ASYNC_LOAD"
    with ONE_LOAD:
        before = os.environ.get(switch)
        os.environ[switch] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[switch]
            else:
                os.environ[switch] = before
