"""Supervised fine-tuning (SFT) on conversations: the loss covers the answers, not the prompts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers
from torch import nn

from dllm.configs import DataArguments, ModelArguments
from dllm.data.chat import check_answers, default_sft_map_fn
from dllm.data.collators import NoAttentionMaskWrapper
from dllm.data.lengths import post_process_dataset
from dllm.data.load import load_sft_dataset
from dllm.models import get_config, get_model, get_tokenizer
from dllm.recipes.run import Recipe


@dataclass
class SFTData(DataArguments):
    """The data of a fine-tuning run: conversations, one per row, in the column `messages`.

    Raises:
        ValueError: as DataArguments; `answers` other than last and all, or all with mask_prompt_loss=False.

    Example:
        >>> SFTData(dataset_args="data/dialogues").mask_prompt_loss
        True
    """

    mask_prompt_loss: bool = field(default=True, metadata={"help": "Train on the answers only, not on the prompts."})
    answers: str = field(
        default="last", metadata={"help": "Which answers of a conversation are trained: last, or all."}
    )
    load_preprocessed_data: bool = field(default=False, metadata={"help": "The data are already tokenized samples."})

    def __post_init__(self):
        super().__post_init__()
        check_answers(self.answers, self.mask_prompt_loss)


def samples(data_args: SFTData, tokenizer: Any) -> Mapping[str, Any]:
    """Samples by split: token ids and labels, cut or filtered to `max_length`."""
    splits = load_sft_dataset(data_args.dataset_args, load_preprocessed_data=data_args.load_preprocessed_data)
    if not data_args.load_preprocessed_data:
        options = dict(mask_prompt_loss=data_args.mask_prompt_loss, answers=data_args.answers)
        to_sample = functools.partial(_sample_of, tokenizer=tokenizer, **options)
        splits = splits.map(to_sample, with_indices=True, num_proc=data_args.num_proc, desc="tokenizing")
    return post_process_dataset(splits, data_args)


def _sample_of(row: Mapping[str, Any], number: int, **options: Any) -> dict[str, Any]:
    """:func:`default_sft_map_fn`, with the row's number in error messages."""
    try:
        return default_sft_map_fn(row, **options)
    except ValueError as error:
        raise ValueError(f"row {number}: {error}") from error


def collator(data_args: SFTData, tokenizer: Any) -> Callable:
    """The collator. Padding has labels and no attention mask, so that the model learns it as the end of an answer."""
    return NoAttentionMaskWrapper(
        transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=tokenizer.pad_token_id)
    )


def model(model_args: ModelArguments, tokenizer: Any) -> nn.Module:
    """The pretrained model, with a LoRA adapter if `lora` is set."""
    return get_model(model_args)


def config(model_args: ModelArguments, tokenizer: Any) -> transformers.PretrainedConfig:
    """The configuration of the pretrained model."""
    return get_config(model_args)


SFT = Recipe("sft", ModelArguments, SFTData, get_tokenizer, config, model, samples, collator)
