"""Fine-tune a model of Edit Flows on conversations: answers grow out of masks by edits.

On one GPU; any ModernBERT, LLaDA, Dream, or Qwen made by `dllm.pipelines.a2d.convert`, becomes such a model:

    python -u examples/editflow/sft.py --model_name_or_path answerdotai/ModernBERT-large

On several GPUs of a machine; fsdp, fsdp2, zero1, zero2 and zero3 lie beside ddp:

    accelerate launch --config_file scripts/accelerate_configs/ddp.yaml --num_processes 8 examples/editflow/sft.py ...

On a cluster, from a Slurm login node:

    sbatch --nodes 2 --gres gpu:8 scripts/train.slurm.sh \
        --accelerate_config ddp --script_path examples/editflow/sft.py ...

--x0_sampler empty lets answers grow out of nothing; sample.py then takes --mask_length 0.

Every field of the argument classes below and of transformers.TrainingArguments is an option; --help lists them. What
`dllm train --task editflow` does is the same; its --dry-run tells parameters, steps and memory beforehand.
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
    model_name_or_path: str = "answerdotai/ModernBERT-large"


@dataclass
class DataArguments(recipes.EditFlowSFTData):
    dataset_args: str = "tatsu-lab/alpaca"
    max_length: int = 512
    x0_sampler: str = "masks[length:64]"


@dataclass
class TrainingArguments(dllm.core.trainers.EditFlowTrainerConfig):
    output_dir: str = "models/EditFlow-ModernBERT-large-sft"
    num_train_epochs: float = 20
    learning_rate: float = 3e-4
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 8
    kappa_scheduler: str = "linear"


def train() -> None:
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    recipes.run(recipes.EDIT_FLOW_SFT, *parser.parse_args_into_dataclasses())


if __name__ == "__main__":
    sys.exit(exit_code("sft.py", train))
