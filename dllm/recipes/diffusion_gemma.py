"""Fine-tuning of DiffusionGemma on conversations: uniform noise on one canvas of an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import transformers

from dllm.configs import ModelArguments
from dllm.core.trainers import DiffusionGemmaTrainer, DiffusionGemmaTrainerConfig
from dllm.recipes.sft import SFT, SFTData

# Attention and dense MLP of encoder and decoder; not the experts, nor what reads images.
TEXT_LAYERS = r".*\.(language_model|decoder)\.layers\.\d+\.(self_attn|mlp)\.[a-z]+_proj"


@dataclass
class DiffusionGemmaModelArguments(ModelArguments):
    """The model's arguments: those of :class:`~dllm.configs.ModelArguments`, with other layers for an adapter.

    Raises:
        ValueError: as the parent class.

    Example:
        >>> DiffusionGemmaModelArguments(model_name_or_path="models/gemma", lora=True).r
        32
    """

    target_modules: str = field(default=TEXT_LAYERS, metadata={"help": "Modules that get an adapter."})


def collator(data_args: SFTData, tokenizer: Any) -> Callable:
    """The collator. Padding has no labels: the trainer fills canvases behind the end of an answer itself."""
    return transformers.DataCollatorForSeq2Seq(tokenizer)


DIFFUSION_GEMMA_SFT = dataclasses.replace(
    SFT,
    name="diffusiongemma-sft",
    model_arguments=DiffusionGemmaModelArguments,
    collator=collator,
    training_arguments=DiffusionGemmaTrainerConfig,
    trainer=DiffusionGemmaTrainer,
)
