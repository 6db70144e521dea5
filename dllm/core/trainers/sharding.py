"""FSDP as it was asked for: also on a CPU, and with layers that can be sharded apart."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dllm.fast.head.tap import output_head
from dllm.fast.model import input_embedding

_log = logging.getLogger("dllm")


def check_fsdp(device: torch.device) -> None:
    """Before a trainer makes its accelerator.

    Raises:
        ValueError: FSDP1 is asked for on a CPU, which it does not know.
    """
    if _asked_for() and device.type == "cpu" and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("FSDP on a CPU must be FSDP2 (scripts/accelerate_configs/fsdp2.yaml), got FSDP1")


def keep_fsdp(trainer: Any) -> None:
    """Once a trainer has its accelerator, before it prepares the model.

    - Accelerate takes FSDP for a thing of accelerators: on a CPU it would train by DDP, without a word. FSDP2 shards on
      a CPU as well, so the accelerator is told, as it tells itself elsewhere, that this is FSDP.
    - Where no classes of layers are named, those of the model are taken that hold no embedding: with a tied head its
      weight would be in two places that are sharded apart, which torch refuses.
    - Of BERT's and RoBERTa's heads the bias is in two places. Accelerate shards embedding and head apart from the rest,
      one of those places in either, which torch refuses from 2.13 on. So they stay with the rest.

    Args:
        trainer: of transformers; `accelerator`, `model` and `is_fsdp_enabled` are read and set.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None and _asked_for() and trainer.args.device.type == "cpu":
        plugin = _on_cpu(trainer)
    if plugin is None:
        return
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layer_classes(trainer.model)
    if plugin.fsdp_version == 2 and _bias_is_shared(trainer.model):
        prepare = trainer.accelerator.prepare

        def prepare_whole(*args: Any, **options: Any) -> Any:
            with _tables_kept_out_of_sight(trainer.model):
                return prepare(*args, **options)

        trainer.accelerator.prepare = prepare_whole


def layer_classes(model: nn.Module) -> list[str] | None:
    """Names of the classes of layers that a model, or a model in it, wants whole and that hold no embedding of tokens;
    None if there are none.

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


def _asked_for() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _on_cpu(trainer: Any) -> Any:
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
def _tables_kept_out_of_sight(model: nn.Module) -> Iterator[None]:
    """The model names neither its embedding nor its head, except to itself, where it ties them."""
    tie = model.tie_weights

    def hide() -> None:
        model.get_input_embeddings = model.get_output_embeddings = lambda: None

    def tie_in_sight(*args: Any, **options: Any) -> Any:
        del model.get_input_embeddings, model.get_output_embeddings
        try:
            return tie(*args, **options)
        finally:
            hide()

    hide()
    model.tie_weights = tie_in_sight
    try:
        yield
    finally:
        del model.get_input_embeddings, model.get_output_embeddings, model.tie_weights
