"""Models, as they are trained: in a dtype, quantised or with adapters where asked for."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from dllm.configs import ModelArguments
from dllm.models.families import adapter_at, family_of, model_type_at


def get_model(model_args: ModelArguments | None = None, config: Any = None, **options: Any) -> nn.Module:
    """The masked language model that `model_args` describes.

    Args:
        model_args: which model, in which dtype, with which attention; 4-bit and LoRA. Any object with
            `model_name_or_path` will do: fields that it lacks have the defaults of ModelArguments.
        config: the model's configuration, where it is not to be the one that lies beside the weights.
        options: fields of :class:`~dllm.configs.ModelArguments`, in place of `model_args` or over its values.

    On a machine with a GPU the model is on that of this process (`LOCAL_RANK`), unless accelerate is to shard it.
    Weights are read from safetensors only. A folder with an adapter of peft gives the base model with it. Code that
    comes with a model is run with `trust_remote_code` only.

    `attn_implementation` goes to transformers as it is: "eager", "sdpa", "flex_attention", "flash_attention_2",
    "flash_attention_3" or what else it knows. Under flash attention samplers run rows of unequal length without their
    padding, in models that can do so; decoding block by block needs one of the first three.

    Raises:
        OSError: there is no such folder or name on the Hub, or no safetensors in it, or damaged ones.
        TypeError: an unknown option.
        ValueError: what is there is no masked language model, or needs `trust_remote_code`; a dtype that is none; an
            attention that transformers does not have for this model.
        ImportError: 4-bit, LoRA or flash attention is asked for and its extra is not installed.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> get_model(model_name_or_path=str(SHIPPED), dtype="float32").dtype
        torch.float32
    """
    chosen = chosen_arguments(model_args, options)
    source = check_source(chosen.model_name_or_path)
    dtype = dtype_named(chosen.dtype)
    given = dict(dtype=dtype, config=config, attn_implementation=chosen.attn_implementation)
    if chosen.load_in_4bit:
        given["quantization_config"] = _four_bit(dtype)
    given = {name: value for name, value in given.items() if value is not None}
    # pickled weights would run code while they are read
    given |= dict(use_safetensors=True, trust_remote_code=chosen.trust_remote_code)
    try:
        model = _auto_class(source, config).from_pretrained(source, **given)
    except SafetensorError as error:
        raise OSError(f"the weights at {source} are damaged, or were not written to their end: {error}") from error
    except ImportError as error:
        if "flash" not in (chosen.attn_implementation or ""):
            raise
        raise ImportError(
            f"{chosen.attn_implementation} cannot run: pip install 'dllm[flash]' brings flash_attention_2. {error}"
        ) from error
    return load_peft(_placed(model), chosen)


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


def _placed(model: nn.Module) -> nn.Module:
    """Where it is to run. What is to be sharded, or was quantised, is placed by those who do that."""
    sharded = any(os.environ.get(f"ACCELERATE_USE_{how}", "").lower() == "true" for how in ("FSDP", "DEEPSPEED"))
    if not torch.cuda.is_available() or sharded or getattr(model, "is_quantized", False):
        return model
    return model.to(torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))))


def load_peft(model: nn.Module, model_args: ModelArguments) -> nn.Module:
    """The model with a new LoRA adapter, the only part of it that is trained; as it is if `model_args.lora` is not set,
    or if it has an adapter already.

    Raises:
        ImportError: peft is not installed.

    Source: LoRA (arXiv:2106.09685).

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> arguments = ModelArguments(model_name_or_path=str(SHIPPED))
        >>> model = get_model(arguments)
        >>> load_peft(model, arguments) is model
        True
    """
    if not model_args.lora:
        return model
    _need("peft", "lora")
    import peft

    if isinstance(model, peft.PeftModel):
        return model
    config = peft.LoraConfig(
        r=model_args.r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        bias=model_args.bias,
        target_modules=_targets(model_args.target_modules),
        modules_to_save=_words(model_args.modules_to_save),
    )
    if model_args.load_in_4bit:
        model = peft.prepare_model_for_kbit_training(model)
    return peft.get_peft_model(model, config)


def check_source(source: str) -> str:
    """A folder that is there, or what may be a name on the Hub, as it is.

    Raises:
        FileNotFoundError: it can only be a folder, and there is none.
        OSError: an adapter whose weights are not there as safetensors.

    Example:
        >>> check_source("answerdotai/ModernBERT-base")
        'answerdotai/ModernBERT-base'
        >>> check_source("/no/such/model")
        Traceback (most recent call last):
        ...
        FileNotFoundError: there is no folder /no/such/model
    """
    path = Path(source)
    named_as_folder = path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1
    if named_as_folder and not path.is_dir():
        raise FileNotFoundError(f"there is no folder {source}")
    if adapter_at(source):
        _need("peft", "lora")
        if not (path / "adapter_model.safetensors").is_file():
            raise OSError(f"the adapter at {source} must have its weights in adapter_model.safetensors, got none")
    return source


def dtype_named(name: str | torch.dtype) -> torch.dtype:
    """A floating-point dtype by its name in torch.

    Raises:
        ValueError: it names none.

    Example:
        >>> dtype_named("bfloat16")
        torch.bfloat16
    """
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must name a floating-point dtype of torch, got {name!r}")
    return dtype


def _auto_class(source: str, config: Any) -> Any:
    """Of transformers, the class that loads models of the family."""
    family = family_of(model_type_at(source) if config is None else config.model_type)
    return getattr(transformers, family.auto_class if family else "AutoModelForMaskedLM")


def _four_bit(dtype: torch.dtype) -> transformers.BitsAndBytesConfig:
    _need("bitsandbytes", "4bit")
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _targets(text: str) -> str | list[str]:
    """A list of names in JSON or with commas between them; one word may be "all-linear" or a regular expression."""
    if text.startswith("["):
        return json.loads(text)
    return _words(text) if "," in text else text


def _words(text: str | None) -> list[str] | None:
    """The words of a list that is separated by commas."""
    return None if text is None else [word.strip() for word in text.split(",")]


def _need(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{package} is not installed: pip install 'dllm[{extra}]'")
