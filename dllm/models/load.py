"""Loading of models: a checkpoint or random weights, in a dtype, quantised to 4 bit or with an adapter if asked for."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
import transformers
from torch import nn

from dllm.configs import ModelArguments
from dllm.fast.model import is_diffusion_gemma
from dllm.fast.quantize import quantize
from dllm.models.adapters import adapted
from dllm.models.classes import auto_class, made_bidirectional
from dllm.models.official import load as official
from dllm.models.official import marker_of
from dllm.models.sources import base_of, check_source, dtype_named, file_at, get_config, mapping_at, need, reading


def get_model(model_args: ModelArguments | None = None, config: Any = None, **options: Any) -> nn.Module:
    """Load the masked language model that `model_args` describes.

    Args:
        model_args: name, dtype, attention, quantisation and LoRA of the model. Any object with `model_name_or_path`
            will do; missing fields have the defaults of ModelArguments.
        config: a configuration in place of the checkpoint's own.
        options: fields of :class:`~dllm.configs.ModelArguments`, which replace those of `model_args`.

    If there is a GPU, the model is on that of this process (`LOCAL_RANK`), unless accelerate will shard it or
    `device_map` says where layers are put. Weights are read from safetensors only. If the source is an adapter of peft,
    its base model is loaded with the adapter (:func:`~dllm.models.adapters.adapted`). Code that comes with a model runs
    only with `trust_remote_code`.

    Official checkpoints of LLaDA, LLaDA-MoE, Dream, RND1, A2D and LLaDA2 are recognised by their config.json and loaded
    into transformers' own classes, without their code even if it is trusted (:mod:`dllm.models.official`). The field
    `masked_diffusion` of the model's configuration keeps the family, the right shift and the block size, also in what
    `save_pretrained` writes.

    A model of a causal architecture, as `python -m dllm.demo.training.train --architecture llama` saves it, must have
    `"is_causal": false` in its config.json. It is made bidirectional (:func:`dllm.models.bidirectional`). transformers
    5 reads that key itself, 4.57 does not, so that with 4.57 any other way of loading gives a causal model.

    `attn_implementation` is passed to transformers: "eager", "sdpa", "flex_attention", "flash_attention_2",
    "flash_attention_3" or another name that it knows. Under flash attention, samplers run rows of unequal length
    without padding, if the model supports that; block-causal decoding needs one of the first three. On a CPU
    "packed_sdpa" offers both (:func:`dllm.models.with_packed_attention`).

    With `quantize="int8"` the loaded model's linear layers get weights of 8 bits (:func:`dllm.fast.quantize`): faster
    on a CPU, smaller, approximate, and not to be trained or saved.

    Raises:
        OSError: the folder or the name on the Hub does not exist, or its safetensors are missing or damaged.
        TypeError: an option is unknown.
        ValueError: the source is not a masked language model, does not fit its configuration, or needs
            `trust_remote_code`; a causal architecture lacks `"is_causal": false`; the dtype is unknown; transformers
            does not have the attention for this model.
        ImportError: the extra for 4-bit, LoRA or flash attention is not installed.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> get_model(model_name_or_path=str(SHIPPED), dtype="float32").dtype
        torch.float32
        >>> type(get_model(model_name_or_path=str(SHIPPED), quantize="int8").get_output_embeddings()).__name__
        'Int8Linear'
    """
    chosen = chosen_arguments(model_args, options)
    source = check_source(chosen.model_name_or_path)
    loading = _loading_options(chosen)
    if config is None:
        config = get_config(chosen)
    loading["use_safetensors"] = True  # pickled weights would run code while they are read
    if chosen.device_map is not None:
        loading["device_map"] = chosen.device_map
    if chosen.load_in_4bit:
        loading["quantization_config"] = _four_bit(loading["dtype"])
    base = base_of(source)
    mapping = mapping_at(base, trust_remote_code=chosen.trust_remote_code)
    if mapping is not None and marker_of(config).get("family") != mapping.family:
        raise ValueError(f"the configuration of {base} must come from get_config, got a {type(config).__name__}")
    with official.ONE_LOAD, _flash_extra_named(chosen.attn_implementation), reading("weights", base):
        if mapping is not None:
            model = official.load(mapping, config, functools.partial(file_at, base), base, **loading)
        else:
            kind = auto_class(config)
            model, found = kind.from_pretrained(base, config=config, output_loading_info=True, **loading)
            if marker_of(config):  # else a new head, say, is for the caller to train
                official.check_found(found, base, tied=config.tie_word_embeddings)
            elif is_diffusion_gemma(model) and found["missing_keys"]:
                raise ValueError(f"tensors are missing: {', '.join(sorted(found['missing_keys']))}")
            official.restore_biases(model, functools.partial(file_at, base), base)
    model = adapted(_on_device(made_bidirectional(model)), chosen)
    return model if chosen.quantize is None else quantize(model, chosen.quantize)


def new_model(config: transformers.PretrainedConfig, model_args: ModelArguments) -> nn.Module:
    """Make a masked language model with random weights, on the device of the context (`with torch.device(...)`).

    Args:
        config: of the model.
        model_args: its dtype, its attention, and whether code that comes with it may run.

    Raises:
        ValueError: the configuration is not one of a masked language model, or its sizes are invalid.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> arguments = ModelArguments(model_name_or_path=str(SHIPPED), dtype="float32")
        >>> type(new_model(get_config(arguments), arguments)).__name__
        'ModernBertForMaskedLM'
    """
    loading = _loading_options(model_args)
    with _flash_extra_named(model_args.attn_implementation), reading("configuration", model_args.model_name_or_path):
        return made_bidirectional(auto_class(config).from_config(config, **loading))


def chosen_arguments(model_args: Any, options: dict[str, Any]) -> ModelArguments:
    """ModelArguments from the fields that `model_args` has and, over them, `options`.

    Raises:
        TypeError: an option is unknown.

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


def _loading_options(model_args: ModelArguments) -> dict[str, Any]:
    """Options of `from_pretrained` and `from_config`."""
    options = dict(dtype=dtype_named(model_args.dtype), trust_remote_code=model_args.trust_remote_code)
    if model_args.attn_implementation is not None:
        options["attn_implementation"] = model_args.attn_implementation
    return options


def _on_device(model: nn.Module) -> nn.Module:
    """The model on this process's GPU, if there is one. Sharded, quantised and mapped models are placed elsewhere."""
    sharded = any(os.environ.get(f"ACCELERATE_USE_{how}", "").lower() == "true" for how in ("FSDP", "DEEPSPEED"))
    placed = getattr(model, "hf_device_map", None) is not None
    if not torch.cuda.is_available() or sharded or getattr(model, "is_quantized", False) or placed:
        return model
    return model.to(torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))))


@contextlib.contextmanager
def _flash_extra_named(attention: str | None) -> Iterator[None]:
    """Make an ImportError inside this context name the extra for flash attention, if that is the attention."""
    try:
        yield
    except ImportError as error:
        if "flash" not in (attention or ""):
            raise
        hint = "pip install 'dllm[flash]' brings flash_attention_2"
        raise ImportError(f"{attention} cannot run: {hint}. {error}") from error


def _four_bit(dtype: torch.dtype) -> transformers.BitsAndBytesConfig:
    need("bitsandbytes", "4bit")
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
