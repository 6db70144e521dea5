"""Which class of transformers a configuration's model has, and what must be done to an object of that class."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn

from dllm.fast.model import MARKER
from dllm.models.bidirectional import SUPPORTED, SUPPORTED_TYPES, bidirectional
from dllm.models.families import family_of
from dllm.models.official import marker_of
from dllm.models.official.prepare import prepared


def auto_class(config: transformers.PretrainedConfig) -> Any:
    """The auto class of transformers that loads models of this configuration.

    Raises:
        ValueError: it is not one of a masked language model.

    Example:
        >>> auto_class(transformers.BertConfig()).__name__
        'AutoModelForMaskedLM'
    """
    family = family_of(config.model_type)
    if family is not None:
        return getattr(transformers, family.auto_class)
    if config.model_type in SUPPORTED_TYPES:
        if not marker_of(config) and getattr(config, "is_causal", True):
            name = (getattr(config, "architectures", None) or [config.model_type])[0]
            raise ValueError(f'expected "is_causal": false in the config.json of a {name}, as it is for diffusion')
        return transformers.AutoModelForCausalLM
    if type(config) not in transformers.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "auto_map", None):
        raise ValueError(f"transformers has no masked language model of type {config.model_type!r}")
    return transformers.AutoModelForMaskedLM


def made_bidirectional(model: nn.Module) -> nn.Module:
    """The model, in place, made bidirectional if its architecture is causal, and prepared as its family needs. One that
    runs by its own code gets the name of its family into its configuration.

    Example:
        >>> made_bidirectional(nn.Linear(2, 2))
        Linear(in_features=2, out_features=2, bias=True)
    """
    config = getattr(model, "config", None)
    family = family_of(getattr(config, "model_type", None))
    if family is not None and family.runs_own_code and not marker_of(config):
        setattr(config, MARKER, {"family": family.name})
    return prepared(bidirectional(model) if type(model).__name__ in SUPPORTED else model)
