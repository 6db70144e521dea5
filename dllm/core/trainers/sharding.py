"""FSDP as it was asked for: also on a CPU, and with layers that can be sharded apart."""

from __future__ import annotations

import logging
import os
from typing import Any

from torch import nn

from dllm.fast.inputs import input_embedding

_log = logging.getLogger("dllm")


def keep_fsdp(trainer: Any) -> None:
    """Once the trainer has its accelerator, before it prepares the model.

    Accelerate takes FSDP for a thing of accelerators: on a CPU it would train by DDP, without a word. FSDP2 shards on a
    CPU as well, so the accelerator is told, as it tells itself elsewhere, that this is FSDP; FSDP1 does not, which is
    logged. Where no classes of layers are named, those of the model are taken that hold no embedding: with a tied head
    its weight would be in two places that are sharded apart, which torch refuses.

    Args:
        trainer: of transformers; `accelerator`, `model` and `is_fsdp_enabled` are read and set.
    """
    state = trainer.accelerator.state
    plugin = getattr(state, "fsdp_plugin", None)
    if plugin is None and _asked_for() and trainer.args.device.type == "cpu":
        plugin = _on_cpu(trainer)
    if plugin is not None and plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layer_classes(trainer.model)


def layer_classes(model: nn.Module) -> list[str] | None:
    """Names of the classes of layers that a model wants whole and that hold no embedding of tokens; None if it names
    none.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> tiny = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=50)
        >>> layer_classes(BertForMaskedLM(BertConfig(**tiny)))
        ['BertLayer']
    """
    table = input_embedding(model)
    wanted = set(getattr(model, "_no_split_modules", None) or ())
    found = {type(m).__name__ for m in model.modules() if all(p is not table for p in m.parameters())} & wanted
    return sorted(found) or None


def _asked_for() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _on_cpu(trainer: Any) -> Any:
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()  # reads what the launcher wrote into the environment
    if plugin.fsdp_version != 2 or trainer.accelerator.num_processes == 1:
        _log.warning("nothing is sharded: on a CPU that takes FSDP2 and several processes")
        return None
    state = trainer.accelerator.state
    if trainer.args.bf16:
        plugin.set_mixed_precision("bf16")
    state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    state.fsdp_plugin, trainer.is_fsdp_enabled = plugin, True
    return plugin
