"""Models, as they are trained: in a dtype, quantised or with adapters where asked for."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import nn

from dllm.configs import ModelArguments


def get_model(model_args: ModelArguments | None = None, config: Any = None, **options: Any) -> nn.Module:
    """The masked language model that `model_args` describes.

    Args:
        model_args: which model, in which dtype, with which attention; 4-bit and LoRA.
        config: the model's configuration, where it is not to be the one that lies beside the weights.
        options: fields of :class:`~dllm.configs.ModelArguments`, in place of `model_args` or over its values.

    Raises:
        OSError: there is no such folder or name on the Hub.
        TypeError: an unknown option.
        ValueError: what is there is no masked language model; a dtype that is none.
        ImportError: 4-bit or LoRA is asked for and its extra is not installed.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> get_model(model_name_or_path=str(SHIPPED), dtype="float32").dtype
        torch.float32
    """
    # scripts add fields of their own to a subclass
    chosen = ModelArguments(**options) if model_args is None else replace(model_args, **options)
    dtype = getattr(torch, str(chosen.dtype).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must name a floating-point dtype of torch, got {chosen.dtype!r}")
    given = dict(dtype=dtype, config=config, attn_implementation=chosen.attn_implementation)
    if chosen.load_in_4bit:
        given["quantization_config"] = _four_bit(dtype)
    given = {name: value for name, value in given.items() if value is not None}
    model = transformers.AutoModelForMaskedLM.from_pretrained(chosen.model_name_or_path, **given)
    return load_peft(model, chosen) if chosen.lora else model


def load_peft(model: nn.Module, model_args: ModelArguments) -> nn.Module:
    """The model with a new LoRA adapter, the only part of it that is trained.

    Raises:
        ImportError: peft is not installed.

    Source: LoRA (arXiv:2106.09685).
    """
    _need("peft", "lora")
    import peft

    targets = model_args.target_modules  # one word may be "all-linear" or a regular expression
    config = peft.LoraConfig(
        r=model_args.r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        bias=model_args.bias,
        target_modules=_words(targets) if "," in targets else targets,
        modules_to_save=_words(model_args.modules_to_save),
    )
    if model_args.load_in_4bit:
        model = peft.prepare_model_for_kbit_training(model)
    return peft.get_peft_model(model, config)


def _four_bit(dtype: torch.dtype) -> transformers.BitsAndBytesConfig:
    _need("bitsandbytes", "4bit")
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _words(text: str | None) -> list[str] | None:
    """The words of a list that is separated by commas."""
    return None if text is None else [word.strip() for word in text.split(",")]


def _need(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{package} is not installed: pip install 'dllm[{extra}]'")
