"""Runs over two processes: :func:`two_ranks` starts them, each of them is `python -m tests.core.rank OUT RUNS`.

RUNS are the runs' settings as a JSON list, the environment is as torchrun sets it. Writes OUT/rank{r}.pt, a dict for
every run: the gradients of its steps, its logged entries, the metrics of an evaluation, the way the head was used.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import fully_shard

from dllm.core.trainers import BD3LMTrainer, MDLMTrainer
from dllm.fast.model import unwrapped
from tests import launch
from tests.core.reference import Objective
from tests.core.runs import KINDS, Gradients, model_of, samples_of, trainer_of
from tests.families.toys import load
from tests.models import kind_of

ROOT = Path(__file__).parents[2]


class Sharded(MDLMTrainer):
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


TRAINERS = {"MDLM": MDLMTrainer, "BD3LM": BD3LMTrainer, "Sharded": Sharded}


def run(out: str, settings: dict) -> dict:
    family = settings["family"]
    watch, model = Gradients(), load(family) if family else model_of(KINDS[settings["kind"]], **settings["model"])
    if settings["head_alone"]:
        fully_shard(model.get_output_embeddings(), reshard_after_forward=True)
    trainer = trainer_of(
        out,
        model,
        samples_of(settings["samples"]),
        Objective(norm=settings["norm"]),
        TRAINERS["Sharded" if settings["sharded"] else settings["trainer"]],
        callbacks=[watch],
        eval_dataset=samples_of(settings["evaluated"], seed=5),
        **settings["options"],
    )
    trainer.train(resume_from_checkpoint=settings["resume"])
    if settings["saved"]:
        trainer.save_model(settings["saved"])
    used = kind_of(unwrapped(trainer.model_wrapped))
    return dict(gradients=watch.seen, logs=trainer.state.log_history, evaluation=trainer.evaluate(), used=used)


def two_ranks(folder: Path, runs: list[dict]) -> list[list[dict]]:
    """What each of two ranks found in each run, all runs one after the other in the same two processes."""
    defaults = dict(model={}, trainer="MDLM", sharded=False, head_alone=False, resume=None, saved=None, family=None)
    return launch.two_ranks(folder, "tests.core.rank", json.dumps([defaults | run for run in runs]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = [run(sys.argv[1], settings) for settings in json.loads(sys.argv[2])]
    torch.save(found, f"{sys.argv[1]}/rank{os.environ['RANK']}.pt")
    launch.leave()
