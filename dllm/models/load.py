"""Models, as they are trained: in a dtype, quantised or with adapters where asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
import transformers
from torch import nn

from dllm.configs import ModelArguments
from dllm.models.adapters import adapted
from dllm.models.bidirectional import SERVED, SERVED_TYPES, bidirectional
from dllm.models.families import family_of
from dllm.models.sources import base_of, check_source, dtype_named, get_config, need, reading


def get_model(model_args: ModelArguments | None = None, config: Any = None, **options: Any) -> nn.Module:
    """The masked language model that `model_args` describes.

    Args:
        model_args: which model, in which dtype, with which attention; 4-bit and LoRA. Any object with
            `model_name_or_path` will do: fields that it lacks have the defaults of ModelArguments.
        config: the model's configuration, where it is not to be the one that lies beside the weights.
        options: fields of :class:`~dllm.configs.ModelArguments`, in place of `model_args` or over its values.

    On a machine with a GPU the model is on that of this process (`LOCAL_RANK`), unless accelerate is to shard it.
    Weights are read from safetensors only. An adapter of peft, in a folder or on the Hub, gives its base model with it
    (:func:`adapted`). Code that comes with a model is run with `trust_remote_code` only.

    One of a causal architecture, as `python -m dllm.demo.train --architecture llama` saves it, has `"is_causal": false`
    in its config.json and is made bidirectional (:func:`dllm.models.bidirectional`). transformers 5 reads that key
    itself; 4.57 does not, so there any other way of loading gives a causal model.

    `attn_implementation` goes to transformers as it is: "eager", "sdpa", "flex_attention", "flash_attention_2",
    "flash_attention_3" or what else it knows. Under flash attention samplers run rows of unequal length without their
    padding, in models that can do so; decoding block by block needs one of the first three.

    Raises:
        OSError: there is no such folder or name on the Hub, or no safetensors in it, or damaged ones.
        TypeError: an unknown option.
        ValueError: what is there is no masked language model, or one that does not fit its configuration, or needs
            `trust_remote_code`; a causal architecture that lacks that key; a dtype that is none; an attention that
            transformers does not have for this model.
        ImportError: 4-bit, LoRA or flash attention is asked for and its extra is not installed.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> get_model(model_name_or_path=str(SHIPPED), dtype="float32").dtype
        torch.float32
    """
    chosen = chosen_arguments(model_args, options)
    source = check_source(chosen.model_name_or_path)
    given = _options(chosen)
    if config is None:
        config = get_config(chosen)
    given["use_safetensors"] = True  # pickled weights would run code while they are read
    if chosen.load_in_4bit:
        given["quantization_config"] = _four_bit(given["dtype"])
    base = base_of(source)
    with _attention_named(chosen.attn_implementation), reading("weights", base):
        model = _auto_class(config).from_pretrained(base, config=config, **given)
    return adapted(_placed(_both_sides(model)), chosen)


def new_model(config: transformers.PretrainedConfig, model_args: ModelArguments) -> nn.Module:
    """A masked language model with random weights, on the device of the context (`with torch.device(...)`).

    Args:
        config: of the model.
        model_args: its dtype, its attention, and whether code that comes with it may run.

    Raises:
        ValueError: there is no such masked language model, or sizes that cannot be.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> arguments = ModelArguments(model_name_or_path=str(SHIPPED), dtype="float32")
        >>> type(new_model(get_config(arguments), arguments)).__name__
        'ModernBertForMaskedLM'
    """
    given = _options(model_args)
    with _attention_named(model_args.attn_implementation), reading("configuration", model_args.model_name_or_path):
        return _both_sides(_auto_class(config).from_config(config, **given))


def chosen_arguments(model_args: Any, options: dict[str, Any]) -> ModelArguments:
    """`model_args`, which need not have all the fields, with `options` over them.

    Raises:
        TypeError: an unknown option.

    Example:
        >>> from types import SimpleNamespace
        >>> chosen_arguments(SimpleNamespace(model_name_or_path="bert", steps=3), {"dtype": "float32"}).dtype
        'float32'
    """
    given = {
        field.name: getattr(model_args, field.name)
        for field in fields(ModelArguments)
        if hasattr(model_args, field.name)
    }
    return ModelArguments(**given | options)


def _options(model_args: ModelArguments) -> dict[str, Any]:
    """What transformers is told of a model, whether its weights are read or new."""
    given = dict(dtype=dtype_named(model_args.dtype), trust_remote_code=model_args.trust_remote_code)
    if model_args.attn_implementation is not None:
        given["attn_implementation"] = model_args.attn_implementation
    return given


def _placed(model: nn.Module) -> nn.Module:
    """Where it is to run. What is to be sharded, or was quantised, is placed by those who do that."""
    sharded = any(os.environ.get(f"ACCELERATE_USE_{how}", "").lower() == "true" for how in ("FSDP", "DEEPSPEED"))
    if not torch.cuda.is_available() or sharded or getattr(model, "is_quantized", False):
        return model
    return model.to(torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))))


@contextlib.contextmanager
def _attention_named(name: str | None) -> Iterator[None]:
    """Within it an error of import names the extra that brings flash attention, where that is asked for."""
    try:
        yield
    except ImportError as error:
        if "flash" not in (name or ""):
            raise
        raise ImportError(f"{name} cannot run: pip install 'dllm[flash]' brings flash_attention_2. {error}") from error


def _auto_class(config: transformers.PretrainedConfig) -> Any:
    """Of transformers, the class that loads models of this configuration."""
    family = family_of(config.model_type)
    if family is not None:
        return getattr(transformers, family.auto_class)
    if config.model_type in SERVED_TYPES:
        if getattr(config, "is_causal", True):
            name = (getattr(config, "architectures", None) or [config.model_type])[0]
            raise ValueError(f'expected "is_causal": false in the config.json of a {name}, as it is for diffusion')
        return transformers.AutoModelForCausalLM
    if type(config) not in transformers.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "auto_map", None):
        raise ValueError(f"transformers has no masked language model of type {config.model_type!r}")
    return transformers.AutoModelForMaskedLM


def _both_sides(model: nn.Module) -> nn.Module:
    """One of a causal architecture is made bidirectional, which its configuration asks for."""
    return bidirectional(model) if type(model).__name__ in SERVED else model


def _four_bit(dtype: torch.dtype) -> transformers.BitsAndBytesConfig:
    need("bitsandbytes", "4bit")
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
