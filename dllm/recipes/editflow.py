"""Fine-tuning and pre-training by Edit Flows: texts grow from masks, or from nothing, by edits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers
from torch import nn

from dllm.core.trainers import EditFlowCollator, EditFlowTrainer, EditFlowTrainerConfig
from dllm.core.trainers.edit_collator import make_x0_sampler
from dllm.models import EditFlowConfig, EditFlowModel, get_config, get_model, load_peft
from dllm.models.editflow import class_for
from dllm.recipes import pretraining
from dllm.recipes.pretraining import PRETRAINING, PretrainingData, PretrainingModel
from dllm.recipes.sft import SFT, SFTData

_X0 = "What a text begins from behind its prompt: empty, or masks[length:N]."


@dataclass
class EditFlowSFTData(SFTData):
    """The data of a run: those of :class:`~dllm.recipes.sft.SFTData`, and what answers begin from.

    Raises:
        ValueError: as the parent class; mask_prompt_loss is False or answers is all, as a sample must be a prompt with
            one answer behind it.

    Example:
        >>> EditFlowSFTData(dataset_args="data/dialogues").x0_sampler
        'masks[length:128]'
    """

    x0_sampler: str = field(default="masks[length:128]", metadata={"help": _X0})

    def __post_init__(self):
        super().__post_init__()
        if not self.mask_prompt_loss or self.answers != "last":
            raise ValueError(
                "an answer is edited behind its prompt, so mask_prompt_loss must be True and answers last, got "
                f"{self.mask_prompt_loss} and {self.answers}"
            )


@dataclass
class EditFlowPretrainingData(PretrainingData):
    """The data of a run: those of :class:`~dllm.recipes.pretraining.PretrainingData`, and what texts begin from.

    Raises:
        ValueError: as the parent class; random_length_ratio is not 0, as texts are not cut once they are pairs.

    Example:
        >>> EditFlowPretrainingData(dataset_args="data/books", x0_sampler="empty").insert_eos
        True
    """

    x0_sampler: str = field(default="masks[length:128]", metadata={"help": _X0})
    random_length_ratio: float = field(default=0.0, metadata={"help": "0: texts are not cut once they are pairs."})

    def __post_init__(self):
        super().__post_init__()
        if self.random_length_ratio:
            raise ValueError(f"random_length_ratio must be 0 for Edit Flows, got {self.random_length_ratio}")


def collator(data_args: EditFlowSFTData | EditFlowPretrainingData, tokenizer: Any) -> Callable:
    """The collator of pairs."""
    return EditFlowCollator(tokenizer, data_args.x0_sampler)


def config(model_args: Any, tokenizer: Any) -> transformers.PretrainedConfig:
    """The configuration of the model of Edit Flows that the run trains."""
    random = isinstance(model_args, PretrainingModel) and model_args.random
    given = pretraining.shaped(model_args, tokenizer) if random else get_config(model_args)
    return given if isinstance(given, EditFlowConfig) else class_for(given).config_class(given)


def model(model_args: Any, tokenizer: Any) -> nn.Module:
    """The model of Edit Flows: a saved one goes on, and any other becomes one, with its LM head for both heads."""
    if isinstance(get_config(model_args), EditFlowConfig) and not getattr(model_args, "random", False):
        return get_model(model_args)
    alone = dataclasses.replace(model_args, lora=False)  # an adapter is put on the model with its new heads
    made = pretraining.model(alone, tokenizer) if isinstance(alone, PretrainingModel) else get_model(alone)
    found = EditFlowModel.from_backbone(made)
    if found.config.mask_token_id is None:
        found.config.mask_token_id = tokenizer.mask_token_id
    return load_peft(found, model_args)


def samples(data_args: PretrainingData, tokenizer: Any) -> Mapping[str, Any]:
    """Samples of text by split, of `max_length` tokens with the BOS token that comes before them."""
    return pretraining.samples(dataclasses.replace(data_args, max_length=data_args.max_length - 1), tokenizer)


def longest(data_args: EditFlowSFTData | EditFlowPretrainingData, training_args: EditFlowTrainerConfig) -> int:
    """The tokens of a text of full length: of max_length, or what the shortest prompt, one token, begins from.

    Example:
        >>> training_args = EditFlowTrainerConfig(output_dir="out", report_to="none")
        >>> longest(EditFlowSFTData(dataset_args="data/dialogues", max_length=64), training_args)
        129
    """
    return max(data_args.max_length, 1 + len(make_x0_sampler(data_args.x0_sampler, mask_id=0)([])))


_OBJECTIVE = dict(
    config=config,
    model=model,
    collator=collator,
    training_arguments=EditFlowTrainerConfig,
    trainer=EditFlowTrainer,
    longest=longest,
)
EDIT_FLOW_SFT = dataclasses.replace(SFT, name="editflow", data_arguments=EditFlowSFTData, **_OBJECTIVE)
EDIT_FLOW_PRETRAINING = dataclasses.replace(
    PRETRAINING, name="editflow-pt", data_arguments=EditFlowPretrainingData, samples=samples, **_OBJECTIVE
)
