"""Pre-train a BERT by masked diffusion on running text, from random weights in any shape or from trained ones.

On a laptop, a small ModernBERT on every .txt file of a folder, with the tokenizer of another model:

    python -u examples/bert/pt.py --model_name_or_path google-bert/bert-base-uncased \
        --model_type modernbert --shape "hidden_size=256,intermediate_size=384,num_hidden_layers=6" \
        --dataset_args data/books --max_length 128 --num_proc 1 --dtype float32 --output_dir models/small

`--from_scratch True` takes the shape that lies at model_name_or_path, `--model_type` transformers' default shape of a
type, and `--shape` changes fields of either. Without them training goes on from the weights that lie there:

    python -u examples/bert/pt.py --model_name_or_path answerdotai/ModernBERT-base \
        --dataset_args "HuggingFaceFW/fineweb-edu" --streaming True --max_steps 10000

On several GPUs of a machine; fsdp, fsdp2, zero1, zero2 and zero3 lie beside ddp:

    accelerate launch --config_file scripts/accelerate_configs/ddp.yaml --num_processes 8 examples/bert/pt.py ...

On a cluster, from a Slurm login node:

    sbatch --nodes 2 --gres gpu:8 scripts/train.slurm.sh \
        --accelerate_config fsdp2 --script_path examples/bert/pt.py ...

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
    model_name_or_path: str = "answerdotai/ModernBERT-base"


@dataclass
class DataArguments(recipes.PretrainingData):
    dataset_args: str = "Trelis/tiny-shakespeare"
    max_length: int = 128


@dataclass
class TrainingArguments(dllm.core.trainers.MDLMConfig):
    output_dir: str = "models/bert-pt"
    num_train_epochs: float = 20
    learning_rate: float = 1e-4
    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 16


def train() -> None:
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    recipes.run(recipes.PRETRAINING, *parser.parse_args_into_dataclasses())


if __name__ == "__main__":
    sys.exit(exit_code("pt.py", train))
