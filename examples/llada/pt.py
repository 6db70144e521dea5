"""Pre-train LLaDA on running text, from its weights or from random ones in its shape.

On one GPU, random weights in a smaller shape:

    python -u examples/llada/pt.py --shape "num_hidden_layers=4" --max_steps 1000

On several GPUs of a machine; ddp, fsdp2, zero1, zero2 and zero3 lie beside fsdp:

    accelerate launch --config_file scripts/accelerate_configs/fsdp.yaml --num_processes 8 examples/llada/pt.py ...

On a cluster, from a Slurm login node:

    sbatch --nodes 2 --gres gpu:8 scripts/train.slurm.sh \
        --accelerate_config fsdp2 --script_path examples/llada/pt.py ...

Every field of the argument classes below and of transformers.TrainingArguments is an option; --help lists them. What
`dllm train --task pt` does is the same; its --dry-run tells parameters, steps and memory beforehand.
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
    model_name_or_path: str = "GSAI-ML/LLaDA-8B-Base"


@dataclass
class DataArguments(recipes.PretrainingData):
    dataset_args: str = "mlfoundations/dclm-baseline-1.0"
    max_length: int = 1024
    streaming: bool = True


@dataclass
class TrainingArguments(dllm.core.trainers.MDLMConfig):
    output_dir: str = "models/LLaDA-8B-pt"
    max_steps: int = 100_000
    learning_rate: float = 1e-4
    gradient_accumulation_steps: int = 4


def train() -> None:
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    recipes.run(recipes.PRETRAINING, *parser.parse_args_into_dataclasses())


if __name__ == "__main__":
    sys.exit(exit_code("pt.py", train))
