"""Pre-training as a launcher starts it: `python -m tests.recipes.launched OUT --name value ...` on each process.

Writes OUT/rank{r}.pt: how the accelerator trains, how many weights are sharded, what was logged.
"""

from __future__ import annotations

import os
import sys

import torch
import transformers
from torch.distributed.tensor import DTensor

from dllm import recipes
from dllm.core.trainers import MDLMConfig
from tests import launch

if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = transformers.HfArgumentParser((recipes.PretrainingModel, recipes.PretrainingData, MDLMConfig))
    trainer = recipes.run(recipes.PRETRAINING, *parser.parse_args_into_dataclasses(sys.argv[2:]))
    weights = list(trainer.model.parameters())
    found = dict(
        kind=trainer.accelerator.distributed_type.value,
        sharded=sum(isinstance(weight, DTensor) for weight in weights),
        weights=len(weights),
        logs=trainer.state.log_history,
    )
    torch.save(found, f"{sys.argv[1]}/rank{os.environ.get('RANK', 0)}.pt")
    if torch.distributed.is_initialized():
        launch.leave()
