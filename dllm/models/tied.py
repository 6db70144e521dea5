"""Weights that are in two places of a model: a head that is the embedding (`tie_word_embeddings`)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def shares_weights(model: nn.Module) -> bool:
    """Whether a weight of the model is in several of its modules.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> shares_weights(load_shipped()[0])
        True
    """
    return len(list(model.parameters())) < len(list(_places(model)))


def separate(model: nn.Module) -> nn.Module:
    """Give every module weights of its own, in place, with a configuration that says so: what changes one of two places
    then leaves the other as it is, and both are saved.

    Returns:
        The same model.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> model = separate(load_shipped()[0])
        >>> shares_weights(model), model.config.tie_word_embeddings
        (False, False)
    """
    seen = set()
    for module, name in list(_places(model)):
        weight = module._parameters[name]
        if id(weight) in seen:
            module._parameters[name] = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        seen.add(id(weight))
    model.config.tie_word_embeddings = False
    return model


def _places(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    return ((m, name) for m in model.modules() for name, weight in m._parameters.items() if weight is not None)
