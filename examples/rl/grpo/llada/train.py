"""Train LLaDA by reinforcement learning on problems whose answers can be checked (diffu-GRPO).

On one GPU, a LoRA adapter on GSM8K; its base is the reference if --beta is above 0:

    python -u examples/rl/grpo/llada/train.py

Other published problems are countdown, sudoku, math and code. Prompts of your own need rewards, names or functions:

    python -u examples/rl/grpo/llada/train.py --dataset_args countdown
    python -u examples/rl/grpo/llada/train.py --dataset_args prompts.jsonl --reward_funcs correctness my_rewards.brevity

On several GPUs of a machine; fsdp, fsdp2, zero1 and zero2 lie beside ddp:

    accelerate launch --config_file scripts/accelerate_configs/ddp.yaml --num_processes 8 \
        examples/rl/grpo/llada/train.py ...

On a cluster, from a Slurm login node:

    sbatch --nodes 2 --gres gpu:8 scripts/train.slurm.sh \
        --accelerate_config ddp --script_path examples/rl/grpo/llada/train.py ...

Every field of the argument classes below and of transformers.TrainingArguments is an option; --help lists them. What
`dllm train --task grpo` does is the same; its --dry-run tells parameters, steps and memory beforehand.
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
    model_name_or_path: str = "GSAI-ML/LLaDA-8B-Instruct"
    lora: bool = True
    r: int = 128
    lora_alpha: int = 64


@dataclass
class DataArguments(recipes.PromptData):
    dataset_args: str = "gsm8k[test:128]"


@dataclass
class TrainingArguments(dllm.pipelines.rl.DiffuGRPOConfig):
    output_dir: str = "models/LLaDA-8B-grpo"
    max_prompt_length: int | None = 200
    max_completion_length: int = 256
    steps: int = 128
    block_size: int = 32
    temperature: float = 0.9
    num_generations: int = 6
    num_iterations: int = 12
    per_device_train_batch_size: int = 6
    gradient_accumulation_steps: int = 2
    p_mask_prompt: float = 0.15
    beta: float = 0.04
    learning_rate: float = 3e-6
    lr_scheduler_type: str = "constant_with_warmup"
    warmup_ratio: float = 0.0001
    max_grad_norm: float = 0.2
    adam_beta2: float = 0.99
    weight_decay: float = 0.1
    log_completions: bool = True


def train() -> None:
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    recipes.run(recipes.GRPO, *parser.parse_args_into_dataclasses())


if __name__ == "__main__":
    sys.exit(exit_code("train.py", train))
