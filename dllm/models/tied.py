"""Tied weights: parameters that several modules of a model share, such as embedding and head."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def shares_weights(model: nn.Module) -> bool:
    """Whether several modules of the model share a weight.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> shares_weights(load_shipped()[0])
        True
    """
    return len(list(model.parameters())) < len(list(_places(model)))


def separate(model: nn.Module) -> nn.Module:
    """Untie shared weights, in place: every module gets its own copy, and `tie_word_embeddings` becomes False.

    A change of one module's weight then does not change another's, and both are saved.

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
