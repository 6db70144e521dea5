"""Pre-train an A2D model by block diffusion on running text, from its weights or from random ones in its shape.

The model is made of a causal one first:

    python -m dllm.pipelines.a2d.convert Qwen/Qwen3-0.6B models/a2d/Qwen3-0.6B
    python -u examples/a2d/bd3lm/pt.py --model_name_or_path models/a2d/Qwen3-0.6B

On several GPUs of a machine; ddp, fsdp2, zero1, zero2 and zero3 lie beside fsdp:

    accelerate launch --config_file scripts/accelerate_configs/fsdp.yaml --num_processes 8 examples/a2d/bd3lm/pt.py ...

On a cluster, from a Slurm login node:

    sbatch --nodes 2 --gres gpu:8 scripts/train.slurm.sh \
        --accelerate_config fsdp2 --script_path examples/a2d/bd3lm/pt.py ...

A row holds every text twice, so it is 2 --max_length long; the sampler of bd3lm/sample.py has the same --block_size.

Every field of the argument classes below and of transformers.TrainingArguments is an option; --help lists them.
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
    model_name_or_path: str = "models/a2d/Qwen3-0.6B"


@dataclass
class DataArguments(recipes.PretrainingData):
    dataset_args: str = "Trelis/tiny-shakespeare"
    max_length: int = 128
    text_field: str = "Text"


@dataclass
class TrainingArguments(dllm.core.trainers.BD3LMConfig):
    output_dir: str = "models/a2d-bd3lm-pt"
    num_train_epochs: float = 20
    learning_rate: float = 1e-4
    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 16


def train() -> None:
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    recipes.run(recipes.PRETRAINING, *parser.parse_args_into_dataclasses(), trainer=dllm.core.trainers.BD3LMTrainer)


if __name__ == "__main__":
    sys.exit(exit_code("pt.py", train))
