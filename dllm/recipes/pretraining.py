"""Pre-training on text, from random weights in a chosen shape or from existing weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers
import yaml
from torch import nn

from dllm.configs import DataArguments, ModelArguments, check_name, resolve_with_base_env
from dllm.data.collators import RandomTruncateWrapper
from dllm.data.load import load_pt_dataset
from dllm.data.splits import column_names
from dllm.data.tokens import tokenize_and_group
from dllm.models import get_config, get_model, get_tokenizer, load_peft, new_model
from dllm.models.sources import reading
from dllm.recipes import sft
from dllm.recipes.run import Recipe
from dllm.startup import init_device_context_manager

# Special tokens whose ids are stored in a model's configuration.
_SPECIAL = ("bos", "cls", "eos", "mask", "pad", "sep")


@dataclass
class PretrainingModel(ModelArguments):
    """The model of a pre-training run. Weights come from `model_name_or_path`, or are random if one of `from_scratch`,
    `model_type` and `shape` is set.

    Raises:
        ValueError: as ModelArguments; random weights with load_in_4bit.

    Example:
        >>> PretrainingModel(model_name_or_path="google-bert/bert-base-uncased", shape="num_hidden_layers=4").random
        True
    """

    from_scratch: bool = field(default=False, metadata={"help": "Random weights in the shape of model_name_or_path."})
    model_type: str | None = field(
        default=None,
        metadata={"help": "Random weights in transformers' default shape of this type: modernbert, bert, roberta."},
    )
    shape: str | None = field(
        default=None, metadata={"help": "Random weights in another shape: hidden_size=256,num_hidden_layers=4."}
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of the tokenizer, if not the model's."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.tokenizer_name_or_path:
            self.tokenizer_name_or_path = resolve_with_base_env(self.tokenizer_name_or_path, "BASE_MODELS_DIR")
        if self.random and self.load_in_4bit:
            raise ValueError("load_in_4bit needs pretrained weights: random ones cannot be trained in 4 bits")

    @property
    def random(self) -> bool:
        """Whether the run starts from random weights."""
        return bool(self.from_scratch or self.model_type or self.shape)


@dataclass
class PretrainingData(DataArguments):
    """The data of a pre-training run: texts, joined and cut into samples of `max_length` tokens.

    Raises:
        ValueError: as DataArguments; a ratio outside [0, 1].

    Example:
        >>> PretrainingData(dataset_args="data/books").insert_eos
        True
    """

    text_field: str = field(default="text", metadata={"help": "The column of the texts."})
    streaming: bool = field(default=False, metadata={"help": "Read texts while training; needs max_steps."})
    drop_tail: bool = field(default=True, metadata={"help": "Leave out the last tokens if they do not fill a sample."})
    insert_eos: bool = field(default=True, metadata={"help": "End every text with the EOS token."})
    random_length_ratio: float = field(default=0.01, metadata={"help": "Share of batches cut to a random length."})
    load_preprocessed_data: bool = field(default=False, metadata={"help": "The data are already tokenized samples."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.random_length_ratio <= 1:
            raise ValueError(f"random_length_ratio must lie in [0, 1], got {self.random_length_ratio}")


def tokenizer(model_args: PretrainingModel) -> Any:
    """The tokenizer of the run: the one that is named, else the model's."""
    return get_tokenizer(model_args, model_name_or_path=model_args.tokenizer_name_or_path)


def samples(data_args: PretrainingData, tokenizer: Any) -> Mapping[str, Any]:
    """Samples by split: token ids, and the same ids as labels."""
    # without repeat: the trainer restarts a stream itself, and then masks other tokens
    options = dict(streaming=data_args.streaming, load_preprocessed_data=data_args.load_preprocessed_data, repeat=False)
    splits = load_pt_dataset(data_args.dataset_args, **options)
    if data_args.load_preprocessed_data:
        return splits
    group = functools.partial(
        tokenize_and_group,
        tokenizer=tokenizer,
        text_field=data_args.text_field,
        seq_length=data_args.max_length,
        insert_eos=data_args.insert_eos,
        drop_tail=data_args.drop_tail,
    )
    options = {} if data_args.streaming else dict(num_proc=data_args.num_proc, desc="tokenizing")
    cut = {
        split: rows.map(group, batched=True, remove_columns=column_names(rows), **options)
        for split, rows in splits.items()
    }
    if not data_args.streaming and "train" in cut and not len(cut["train"]):
        raise ValueError(
            f"{data_args.dataset_args} must fill a sample of max_length {data_args.max_length} tokens, got fewer: "
            "lower max_length, or set drop_tail to False"
        )
    return cut


def collator(data_args: PretrainingData, tokenizer: Any) -> Callable:
    """The collator: pads shorter samples, and cuts a share of the batches to a random length."""
    return RandomTruncateWrapper(
        transformers.DataCollatorForSeq2Seq(tokenizer, padding=True), random_length_ratio=data_args.random_length_ratio
    )


def model(model_args: PretrainingModel, tokenizer: Any) -> nn.Module:
    """The model: pretrained, or with random weights that are created on the training device."""
    if not model_args.random:
        return get_model(model_args)
    with init_device_context_manager():
        created = new_model(shaped(model_args, tokenizer), model_args)
    return load_peft(created, model_args)


def shaped(model_args: PretrainingModel, tokenizer: Any) -> transformers.PretrainedConfig:
    """The configuration of a model with random weights. Its vocabulary is at least as large as the tokenizer's.

    Raises:
        ValueError: an unknown model type or field, or a value of the wrong type.
        OSError: no configuration at `model_name_or_path`.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> arguments = PretrainingModel(model_name_or_path=str(SHIPPED), model_type="bert", shape="hidden_size=48")
        >>> config = shaped(arguments, tokenizer(arguments))
        >>> config.model_type, config.hidden_size
        ('bert', 48)
    """
    if model_args.model_type:
        check_name("model_type", model_args.model_type, transformers.CONFIG_MAPPING)
        create = functools.partial(transformers.AutoConfig.for_model, model_args.model_type)
    else:
        create = functools.partial(get_config, model_args)
    config = create()
    given = _fields(model_args.shape, config)
    words = len(tokenizer) if model_args.model_type else max(config.vocab_size, len(tokenizer))
    if given.setdefault("vocab_size", words) < len(tokenizer):
        raise ValueError(f"vocab_size must be at least the tokenizer's {len(tokenizer)}, got {given['vocab_size']}")
    if "num_hidden_layers" in given and getattr(config, "layer_types", None):
        given.setdefault("layer_types", None)  # the configuration then derives them from the new number of layers
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in _SPECIAL}
    with reading("shape", model_args.model_name_or_path):
        return create(**{name: value for name, value in special.items() if value is not None}, **given)


def _fields(shape: str | None, config: transformers.PretrainedConfig) -> dict[str, Any]:
    """The fields in `shape`, each converted to the type of the configuration's field."""
    fields = {}
    for part in filter(None, (part.strip() for part in (shape or "").split(","))):
        name, sign, text = (piece.strip() for piece in part.partition("="))
        if not (name and sign and text):
            raise ValueError(f"shape must be field=value,field=value, got {part!r} in it")
        check_name("shape", name, config.to_dict())
        before = getattr(config, name)
        fields[name] = text if isinstance(before, str) else _in_type_of(before, name, yaml.safe_load(text))
    return fields


def _in_type_of(before: Any, name: str, value: Any) -> Any:
    kind = type(before)
    if kind is float and isinstance(value, int | str):
        try:
            return float(value)  # YAML 1.1 reads 1e-5 as text
        except ValueError:
            pass
    if before is not None and type(value) is not kind:
        raise ValueError(f"shape's {name} must be of type {kind.__name__}, got {value!r}")
    return value


def config(model_args: PretrainingModel, tokenizer: Any) -> transformers.PretrainedConfig:
    """The model's configuration: as stored, or in the requested shape."""
    return shaped(model_args, tokenizer) if model_args.random else sft.config(model_args, tokenizer)


PRETRAINING = Recipe("pt", PretrainingModel, PretrainingData, tokenizer, config, model, samples, collator)
