"""Fine-tuning on conversations: the answers are learnt, the prompts are given."""

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
    """The data of a fine-tuning run: conversations, each row with `messages`.

    Raises:
        ValueError: as DataArguments; `answers` that are neither last nor all, or all with mask_prompt_loss=False.

    Example:
        >>> SFTData(dataset_args="data/dialogues").mask_prompt_loss
        True
    """

    mask_prompt_loss: bool = field(default=True, metadata={"help": "Learn the answers only, never the prompts."})
    answers: str = field(default="last", metadata={"help": "Answers of a conversation that are learnt: last, or all."})
    load_preprocessed_data: bool = field(default=False, metadata={"help": "The data are token ids already."})

    def __post_init__(self):
        super().__post_init__()
        check_answers(self.answers, self.mask_prompt_loss)


def samples(data_args: SFTData, tokenizer: Any) -> Mapping[str, Any]:
    """Token ids and labels, cut or filtered to `max_length`."""
    splits = load_sft_dataset(data_args.dataset_args, load_preprocessed_data=data_args.load_preprocessed_data)
    if not data_args.load_preprocessed_data:
        options = dict(mask_prompt_loss=data_args.mask_prompt_loss, answers=data_args.answers)
        to_sample = functools.partial(_numbered, tokenizer=tokenizer, **options)
        splits = splits.map(to_sample, with_indices=True, num_proc=data_args.num_proc, desc="token ids")
    return post_process_dataset(splits, data_args)


def _numbered(row: Mapping[str, Any], number: int, **options: Any) -> dict[str, Any]:
    """:func:`default_sft_map_fn`, whose errors name the row by its number, too."""
    try:
        return default_sft_map_fn(row, **options)
    except ValueError as error:
        raise ValueError(f"row {number}: {error}") from error


def collator(data_args: SFTData, tokenizer: Any) -> Callable:
    """Padding is learnt as the end of an answer: it has labels, and is attended to."""
    return NoAttentionMaskWrapper(
        transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=tokenizer.pad_token_id)
    )


def model(model_args: ModelArguments, tokenizer: Any) -> nn.Module:
    """The model that is named, with an adapter if one is asked for."""
    return get_model(model_args)


def config(model_args: ModelArguments, tokenizer: Any) -> transformers.PretrainedConfig:
    """Of the model that is named."""
    return get_config(model_args)


SFT = Recipe("sft", ModelArguments, SFTData, get_tokenizer, config, model, samples, collator)
