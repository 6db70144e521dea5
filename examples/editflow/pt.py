"""Pre-train a model of Edit Flows on running text, from a masked language model's weights or from random ones.

On one GPU:

    python -u examples/editflow/pt.py --model_name_or_path answerdotai/ModernBERT-large --max_steps 1000

On several GPUs of a machine; fsdp, fsdp2, zero1, zero2 and zero3 lie beside ddp:

    accelerate launch --config_file scripts/accelerate_configs/ddp.yaml --num_processes 8 examples/editflow/pt.py ...

On a cluster, from a Slurm login node:

    sbatch --nodes 2 --gres gpu:8 scripts/train.slurm.sh \
        --accelerate_config ddp --script_path examples/editflow/pt.py ...

A text begins as BOS and 128 masks; --x0_sampler empty lets it grow out of BOS alone.

Every field of the argument classes below and of transformers.TrainingArguments is an option; --help lists them. What
`dllm train --task editflow-pt` does is the same; its --dry-run tells parameters, steps and memory beforehand.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import transformers

import dllm
from dllm import recipes
from dllm.exits import exit_code


@dataclass
class ModelArguments(recipes.PretrainingModel):
    model_name_or_path: str = "answerdotai/ModernBERT-large"


@dataclass
class DataArguments(recipes.EditFlowPretrainingData):
    dataset_args: str = "mlfoundations/dclm-baseline-1.0"
    max_length: int = 512
    streaming: bool = True


@dataclass
class TrainingArguments(dllm.core.trainers.EditFlowTrainerConfig):
    output_dir: str = "models/EditFlow-ModernBERT-large-pt"
    max_steps: int = 20_000
    learning_rate: float = 3e-4
    kappa_scheduler: str = "linear"


def train() -> None:
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    recipes.run(recipes.EDIT_FLOW_PRETRAINING, *parser.parse_args_into_dataclasses())


if __name__ == "__main__":
    sys.exit(exit_code("pt.py", train))
