"""Fine-tuning of Dream on conversations: shifted logits, weights by context (CART), answers cut to drawn lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dllm.core.trainers import DreamTrainer, DreamTrainerConfig
from dllm.data.cutoff import DreamSFTCollator, check_cutoff
from dllm.recipes.sft import SFT, SFTData


@dataclass
class DreamSFTData(SFTData):
    """The data of a run: those of :class:`~dllm.recipes.sft.SFTData`, and how answers are cut.

    Raises:
        ValueError: as the parent class; mask_prompt_loss is False or answers is all, as a sample must be a prompt with
            one answer behind it; resp_cutoff_ratio is outside [0, 1], or is not 0 beside perbatch_cutoff.

    Example:
        >>> DreamSFTData(dataset_args="data/dialogues").perbatch_cutoff
        True
    """

    perbatch_cutoff: bool = field(
        default=True, metadata={"help": "Cut the answers of a batch to the length of one that is drawn."}
    )
    resp_cutoff_ratio: float = field(
        default=0.0, metadata={"help": "Without perbatch_cutoff: the share of batches that lose their last columns."}
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.mask_prompt_loss or self.answers != "last":
            raise ValueError(
                "answers are cut behind their prompts, so mask_prompt_loss must be True and answers last, got "
                f"{self.mask_prompt_loss} and {self.answers}"
            )
        check_cutoff(self.perbatch_cutoff, self.resp_cutoff_ratio)


def collator(data_args: DreamSFTData, tokenizer: Any) -> Callable:
    """The collator. Padding has labels and is attended to, so that the model learns it as the end of an answer."""
    return DreamSFTCollator(
        tokenizer,
        label_pad_token_id=tokenizer.pad_token_id,
        perbatch_cutoff=data_args.perbatch_cutoff,
        resp_cutoff_ratio=data_args.resp_cutoff_ratio,
    )


DREAM_SFT = dataclasses.replace(
    SFT,
    name="dream-sft",
    data_arguments=DreamSFTData,
    collator=collator,
    training_arguments=DreamTrainerConfig,
    trainer=DreamTrainer,
)
