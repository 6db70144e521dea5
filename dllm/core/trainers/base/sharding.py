"""Set-up of FSDP: on a CPU as well, and with layer classes that can be sharded separately."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dllm.fast.head.split import output_head
from dllm.fast.model import input_embedding

_log = logging.getLogger("dllm")


def check_fsdp(device: torch.device) -> None:
    """Check that the requested FSDP supports the device, before a trainer makes its accelerator.

    Raises:
        ValueError: FSDP1 on a CPU.
    """
    if _fsdp_requested() and device.type == "cpu" and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("FSDP on a CPU must be FSDP2 (scripts/accelerate_configs/fsdp2.yaml), got FSDP1")


def set_up_fsdp(trainer: Any) -> None:
    """Set up FSDP of a trainer that has its accelerator and has not prepared its model.

    - Accelerate supports FSDP on accelerators only; on a CPU it would silently train by DDP. FSDP2 shards on a CPU as
      well, so the accelerator's state is set to FSDP here.
    - If no layer classes are named, the model's own are taken, without those that hold an embedding. The weight of a
      tied head would otherwise be in two modules that are sharded separately, which torch refuses.
    - The bias of BERT's and RoBERTa's heads is a parameter of two modules. Accelerate shards embedding and head
      separately from the rest, which separates these two modules, and torch refuses that from 2.13 on. For such models
      embedding and head stay with the rest.

    Args:
        trainer: of transformers; its `accelerator`, `model` and `is_fsdp_enabled` are read and set.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None and _fsdp_requested() and trainer.args.device.type == "cpu":
        plugin = _enable_on_cpu(trainer)
    if plugin is None:
        return
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layer_classes(trainer.model)
    if plugin.fsdp_version == 2 and _bias_is_shared(trainer.model):
        prepare = trainer.accelerator.prepare

        def prepare_whole(*args: Any, **options: Any) -> Any:
            with _embeddings_hidden(trainer.model):
                return prepare(*args, **options)

        trainer.accelerator.prepare = prepare_whole


def layer_classes(model: nn.Module) -> list[str] | None:
    """Names of the layer classes to shard: those in `_no_split_modules` that hold no token embedding; None if none.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> tiny = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=50)
        >>> layer_classes(BertForMaskedLM(BertConfig(**tiny)))
        ['BertLayer']
    """
    table = input_embedding(model)
    wanted = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    found = {type(m).__name__ for m in model.modules() if all(p is not table for p in m.parameters())} & wanted
    return sorted(found) or None


def _fsdp_requested() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _enable_on_cpu(trainer: Any) -> Any:
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    if trainer.accelerator.num_processes == 1:
        _log.warning("nothing is sharded: there is one process only")
        return None
    plugin = FullyShardedDataParallelPlugin()  # reads what the launcher wrote into the environment
    if trainer.args.bf16:
        plugin.set_mixed_precision("bf16")
    state = trainer.accelerator.state
    state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    state.fsdp_plugin, trainer.is_fsdp_enabled = plugin, True
    return plugin


def _bias_is_shared(model: nn.Module) -> bool:
    bias = getattr(output_head(model), "bias", None)
    holders = [m for m in model.modules() if any(p is bias for p in m._parameters.values())]
    return bias is not None and len(holders) > 1


@contextmanager
def _embeddings_hidden(model: nn.Module) -> Iterator[None]:
    """Inside this context the model returns None as its embedding and its head, except while it ties their weights."""
    tie = model.tie_weights

    def hide() -> None:
        model.get_input_embeddings = model.get_output_embeddings = lambda: None

    def tie_unhidden(*args: Any, **options: Any) -> Any:
        del model.get_input_embeddings, model.get_output_embeddings
        try:
            return tie(*args, **options)
        finally:
            hide()

    hide()
    model.tie_weights = tie_unhidden
    try:
        yield
    finally:
        del model.get_input_embeddings, model.get_output_embeddings, model.tie_weights
