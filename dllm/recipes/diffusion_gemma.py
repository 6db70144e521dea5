"""Fine-tuning of DiffusionGemma on conversations: uniform noise on one canvas of an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import transformers

from dllm.core.trainers import DiffusionGemmaTrainer, DiffusionGemmaTrainerConfig
from dllm.recipes.sft import SFT, SFTData


def collator(data_args: SFTData, tokenizer: Any) -> Callable:
    """The collator. Padding has no labels: the trainer fills canvases behind the end of an answer itself."""
    return transformers.DataCollatorForSeq2Seq(tokenizer)


DIFFUSION_GEMMA_SFT = dataclasses.replace(
    SFT,
    name="diffusiongemma-sft",
    collator=collator,
    training_arguments=DiffusionGemmaTrainerConfig,
    trainer=DiffusionGemmaTrainer,
)
