"""Fine-tune Dream on conversations.

On one GPU, in 4 bit with a LoRA adapter:

    python -u examples/dream/sft.py --load_in_4bit True --lora True

On several GPUs of a machine; ddp, fsdp2, zero1, zero2 and zero3 lie beside fsdp:

    accelerate launch --config_file scripts/accelerate_configs/fsdp.yaml --num_processes 8 examples/dream/sft.py ...

On a cluster, from a Slurm login node:

    sbatch --nodes 2 --gres gpu:8 scripts/train.slurm.sh \
        --accelerate_config fsdp2 --script_path examples/dream/sft.py ...

The logits are shifted to the right, masked tokens are weighted by their context (CART), and the answers of a batch are
cut to one length, as by Dream's authors. --loss_weight_type scheduler is MDLM's weight 1 / t.

Every field of the argument classes below and of transformers.TrainingArguments is an option; --help lists them. What
`dllm train --task dream-sft` does is the same; its --dry-run tells parameters, steps and memory beforehand.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import transformers

import dllm
from dllm import recipes
from dllm.exits import exit_code


@dataclass
class ModelArguments(dllm.utils.ModelArguments):
    model_name_or_path: str = "Dream-org/Dream-v0-Base-7B"


@dataclass
class DataArguments(recipes.DreamSFTData):
    dataset_args: str = "allenai/tulu-3-sft-mixture[train:10000,test:1000]"
    max_length: int = 1024


@dataclass
class TrainingArguments(dllm.core.trainers.DreamTrainerConfig):
    output_dir: str = "models/Dream-7B-sft"
    num_train_epochs: float = 5
    learning_rate: float = 2e-5
    per_device_train_batch_size: int = 4
    per_device_eval_batch_size: int = 4
    group_by_length: bool = True


def train() -> None:
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    recipes.run(recipes.DREAM_SFT, *parser.parse_args_into_dataclasses())


if __name__ == "__main__":
    sys.exit(exit_code("sft.py", train))
