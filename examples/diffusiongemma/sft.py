"""Fine-tune DiffusionGemma on conversations.

On one GPU, in 4 bit with a LoRA adapter:

    python -u examples/diffusiongemma/sft.py --load_in_4bit True

On several GPUs of a machine; zero1 and zero2 lie beside ddp, and the others are refused, as encoder and decoder share
their weights:

    accelerate launch --config_file scripts/accelerate_configs/ddp.yaml --num_processes 8 \
        examples/diffusiongemma/sft.py ...

On a cluster, from a Slurm login node:

    sbatch --nodes 2 --gres gpu:8 scripts/train.slurm.sh \
        --accelerate_config ddp --script_path examples/diffusiongemma/sft.py ...

Every field of the argument classes below and of transformers.TrainingArguments is an option; --help lists them. The
optimizer is that of the published recipe: Adam with betas 0.95 and 0.99, a cosine down to a tenth, 2,000 steps of 8.
What `dllm train --task diffusiongemma-sft` does is the same; its --dry-run tells parameters, steps and memory
beforehand. It needs transformers 5.12 or later.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import transformers

import dllm
from dllm import recipes
from dllm.exits import exit_code


@dataclass
class ModelArguments(recipes.DiffusionGemmaModelArguments):
    model_name_or_path: str = "google/diffusiongemma-26B-A4B-it"
    lora: bool = True
    r: int = 8
    lora_alpha: int = 16


@dataclass
class DataArguments(recipes.SFTData):
    dataset_args: str = "allenai/tulu-3-sft-mixture[train:10000,test:1000]"
    max_length: int = 1024


@dataclass
class TrainingArguments(dllm.core.trainers.DiffusionGemmaTrainerConfig):
    output_dir: str = "models/DiffusionGemma-26B-A4B-sft"
    max_steps: int = 2000
    learning_rate: float = 1.5e-4
    lr_scheduler_type: str = "cosine_with_min_lr"
    lr_scheduler_kwargs: dict | str | None = field(default_factory=lambda: {"min_lr_rate": 0.1})
    warmup_ratio: float = 0.05
    adam_beta1: float = 0.95
    adam_beta2: float = 0.99
    weight_decay: float = 1e-4
    per_device_train_batch_size: int = 2
    gradient_accumulation_steps: int = 4
    per_device_eval_batch_size: int = 2
    group_by_length: bool = True


def train() -> None:
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    recipes.run(recipes.DIFFUSION_GEMMA_SFT, *parser.parse_args_into_dataclasses())


if __name__ == "__main__":
    sys.exit(exit_code("sft.py", train))
