"""Fine-tune RND1 on conversations.

On one GPU, in 4 bit with a LoRA adapter:

    python -u examples/rnd1/sft.py --load_in_4bit True --lora True --target_modules q_proj,k_proj,v_proj,o_proj

On several GPUs of a machine; ddp, fsdp2, zero1, zero2 and zero3 lie beside fsdp:

    accelerate launch --config_file scripts/accelerate_configs/fsdp.yaml --num_processes 8 examples/rnd1/sft.py ...

On a cluster, from a Slurm login node:

    sbatch --nodes 2 --gres gpu:8 scripts/train.slurm.sh \
        --accelerate_config fsdp2 --script_path examples/rnd1/sft.py ...

The logits of this family are shifted to the right, which the trainer takes from the model's configuration.

It is a base model; conversations are written in Qwen's template, with the tokens that its tokenizer has for it.

Every field of the argument classes below and of transformers.TrainingArguments is an option; --help lists them.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass

import transformers

import dllm
from dllm import recipes
from dllm.exits import exit_code
from dllm.models.templates import IM_CHAT


@dataclass
class ModelArguments(dllm.utils.ModelArguments):
    model_name_or_path: str = "radicalnumerics/RND1-Base-0910"


@dataclass
class DataArguments(recipes.SFTData):
    dataset_args: str = "allenai/tulu-3-sft-mixture[train:10000,test:1000]"
    max_length: int = 1024


@dataclass
class TrainingArguments(dllm.core.trainers.MDLMConfig):
    output_dir: str = "models/RND1-sft"
    num_train_epochs: float = 5
    learning_rate: float = 2e-5
    per_device_train_batch_size: int = 4
    per_device_eval_batch_size: int = 4
    group_by_length: bool = True


def tokenizer(model_args: ModelArguments) -> transformers.PreTrainedTokenizerBase:
    """RND1's tokenizer, with a chat template: the published one has none."""
    loaded = dllm.utils.get_tokenizer(model_args)
    loaded.chat_template = loaded.chat_template or IM_CHAT
    return loaded


def train() -> None:
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    recipe = dataclasses.replace(recipes.SFT, tokenizer=tokenizer)
    recipes.run(recipe, *parser.parse_args_into_dataclasses())


if __name__ == "__main__":
    sys.exit(exit_code("sft.py", train))
