"""LoRA adapters of peft: new ones, and saved ones from a folder or the Hub."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import types
import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn

from dllm.configs import ModelArguments
from dllm.models.official import Mapping, marker_of, recognise
from dllm.models.official.adapter import in_transformers_names
from dllm.models.sources import ADAPTER_WEIGHTS, adapter_at, file_at, need, reading

_log = logging.getLogger("dllm")

ALL_LINEAR = "all-linear"
_ENDS = ("embed_tokens", "lm_head")


def adapted(model: nn.Module, model_args: ModelArguments, *, weights: bool = True) -> nn.Module:
    """The model with the adapter that `model_args` describes.

    If `model_args.model_name_or_path` is an adapter, that one is loaded. Its weights are trainable with
    `model_args.lora`, else frozen. If it is not, `model_args.lora` adds a new adapter (:func:`load_peft`).

    Args:
        model: the base model.
        model_args: names the adapter.
        weights: read the adapter's weights; False reads its configuration only.

    Raises:
        ImportError: peft is not installed.
        OSError: the adapter has no weights in safetensors, or damaged ones.
        ValueError: the adapter does not fit the model.
    """
    if adapter_at(model_args.model_name_or_path) is None:
        return load_peft(model, model_args)
    need("peft", "lora")
    if getattr(model, "_hf_peft_config_loaded", False):  # transformers loads an adapter from the model's own folder
        if model_args.lora:
            raise ValueError(f"an adapter to train must be in a folder of its own, got a model's, {model.name_or_path}")
        return model
    if model_args.lora:
        model = _ready_for_training(model, model_args)
    return with_adapter(model, model_args.model_name_or_path, trained=model_args.lora, weights=weights)


def load_peft(model: nn.Module, model_args: ModelArguments) -> nn.Module:
    """The model with a new LoRA adapter; only the adapter's weights are trainable.

    The model is returned unchanged if `model_args.lora` is False or it has an adapter already. Modules that a model
    names as `new_modules` (the heads of Edit Flows) are trained in full, besides `model_args.modules_to_save`.

    transformers 5 keeps the experts of a layer in two tensors, to which peft gives adapters without dropout only. So
    "all-linear" with `lora_dropout` above 0 means the layers of attention there, which the log says once.

    Raises:
        ImportError: peft is not installed.
        ValueError: `target_modules` names experts, and `lora_dropout` is above 0; or it names no module of the model.

    Source: LoRA (arXiv:2106.09685).

    Example:
        >>> from dllm.demo.shipped import SHIPPED, load_shipped
        >>> model = load_shipped()[0]
        >>> load_peft(model, ModelArguments(model_name_or_path=str(SHIPPED))) is model
        True
    """
    if not model_args.lora:
        return model
    need("peft", "lora")
    import peft

    if isinstance(model, peft.PeftModel):
        return model
    whole = [*(_words(model_args.modules_to_save) or ()), *getattr(model, "new_modules", ())]
    config = peft.LoraConfig(
        r=model_args.r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        bias=model_args.bias,
        target_modules=_targets_in(model, model_args),
        modules_to_save=list(dict.fromkeys(whole)) or None,
    )
    with _expert_advice():
        return _saved_alone(peft.get_peft_model(_ready_for_training(model, model_args), config))


def with_adapter(model: nn.Module, source: str, *, trained: bool = False, weights: bool = True) -> nn.Module:
    """The model with the adapter from a folder or a name on the Hub.

    An adapter that was trained on the official code of a model's family fits, too: its modules are renamed.

    Args:
        model: the base model.
        source: the folder or the name.
        trained: whether the adapter's weights require gradients.
        weights: read the adapter's weights; False reads its configuration only.

    Raises:
        OSError: the adapter has no weights in safetensors, or damaged ones.
        ValueError: the adapter does not fit the model.
    """
    import peft

    file = file_at(source, ADAPTER_WEIGHTS)
    if file is None:
        raise OSError(f"the adapter at {source} must have its weights in {ADAPTER_WEIGHTS}, got none")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        try:
            with reading("adapter's weights", source), in_transformers_names(file.parent, _mapping_of(model)) as folder:
                if not weights:
                    config = peft.PeftConfig.from_pretrained(str(folder))
                    config.inference_mode = not trained
                    return _saved_alone(peft.get_peft_model(model, config))
                return _saved_alone(peft.PeftModel.from_pretrained(model, str(folder), is_trainable=trained))
        except ValueError as error:  # shapes or names of weights differ
            raise ValueError(f"{source} is no adapter of {_name(model)}: {error}") from error


def _saved_alone(model: nn.Module) -> nn.Module:
    """The adapted model, in place. If its base is an official checkpoint, saving does not look into the checkpoint.

    peft would read the official config.json with transformers' class, which it does not fit, to see whether the
    vocabulary has grown.
    """
    if marker_of(model.config).get("official"):
        model.save_pretrained = types.MethodType(_save_adapter, model)
    return model


def _save_adapter(model: nn.Module, folder: str | os.PathLike, *arguments: Any, **options: Any) -> None:
    """`PeftModel.save_pretrained`, with the embedding and head only if the adapter changes them."""
    targets = [config.target_modules or () for config in model.peft_config.values()]
    options.setdefault("save_embedding_layers", any(name in part for part in targets for name in _ENDS))
    type(model).save_pretrained(model, folder, *arguments, **options)


@contextlib.contextmanager
def _expert_advice() -> Iterator[None]:
    """Make peft's error about the dropout of experts say which options to change."""
    try:
        yield
    except ValueError as error:
        if "lora_dropout" not in str(error):
            raise
        raise ValueError(
            "the experts of this model take no dropout: set lora_dropout to 0, or name the layers of attention, "
            "target_modules q_proj,k_proj,v_proj,o_proj"
        ) from error


def _ready_for_training(model: nn.Module, model_args: ModelArguments) -> nn.Module:
    """The model, prepared by peft for the training of an adapter if it is in 4 bit."""
    if not model_args.load_in_4bit:
        return model
    import peft

    return peft.prepare_model_for_kbit_training(model)


def _mapping_of(model: nn.Module) -> Mapping | None:
    """The mapping of the official checkpoint that the model was loaded from; None if it was not."""
    official = marker_of(getattr(model, "config", None)).get("official")
    return recognise(official) if official else None


def _name(model: nn.Module) -> str:
    return getattr(model, "name_or_path", "") or type(model).__name__


def _targets_in(model: nn.Module, model_args: ModelArguments) -> str | list[str]:
    """The modules to adapt: of a mixture whose experts take no adapter with dropout, "all-linear" is attention."""
    targets = _targets(model_args.target_modules)
    fused = any(".experts." in name and parameter.dim() == 3 for name, parameter in model.named_parameters())
    if targets != ALL_LINEAR or not fused or not model_args.lora_dropout:
        return targets
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".self_attn." in name}
    found = sorted({name.rpartition(".")[2] for name in linear})
    _log.warning(
        "adapters are added to %s only: all other layers stay frozen, as experts take no lora_dropout; with "
        "lora_dropout 0 the experts get adapters, too",
        ", ".join(found),
    )
    return found


def _targets(text: str) -> str | list[str]:
    """Module names, in JSON or separated by commas; or one word, "all-linear" or a regular expression."""
    if text.startswith("["):
        return json.loads(text)
    return _words(text) if "," in text else text


def _words(text: str | None) -> list[str] | None:
    """Words separated by commas."""
    return None if text is None else [word.strip() for word in text.split(",")]
