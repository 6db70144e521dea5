"""Trainers that shard a model by FSDP2 on a CPU, in a process that trains by DDP as well."""

from __future__ import annotations

from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn

from dllm.core.trainers.base import DiffusionTrainer


class _Sharded:
    """Trained by accelerate's FSDP2: layers, the embedding and the head each sharded.

    Accelerate takes FSDP for a thing of accelerators and would train by DDP on a CPU, without a word. So it is told, as
    its own start does elsewhere, that this is FSDP; all that follows is what it does on a GPU.
    """

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        layer = next(type(module[0]).__name__ for module in self.model.modules() if isinstance(module, nn.ModuleList))
        layers = dict(auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=[layer])
        whole = dict(state_dict_type="FULL_STATE_DICT", cpu_ram_efficient_loading=False)
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, reshard_after_forward=True, **layers, **whole)
        if self.args.bf16:
            plugin.set_mixed_precision("bf16")
        state = self.accelerator.state
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        state.fsdp_plugin, self.is_fsdp_enabled = plugin, True


def sharded(kind: type[DiffusionTrainer]) -> type[DiffusionTrainer]:
    """The trainer of this kind that shards its model."""
    return type(f"Sharded{kind.__name__}", (_Sharded, kind), {})
