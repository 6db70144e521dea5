"""Official checkpoints, as a family's authors publish them, mapped to transformers' own classes without remote code."""

from __future__ import annotations

from typing import Any

from dllm.models.official import a2d, dream, llada, llada2, llada_moe, rnd1
from dllm.models.official.mapping import Mapping, marker_of

FAMILIES = (llada_moe, llada, dream, rnd1, a2d, llada2)  # the first that recognises a checkpoint has it


def recognise(config: dict[str, Any]) -> Mapping | None:
    """The mapping of a checkpoint, by the content of its config.json; None if it is of no known family.

    Args:
        config: the content of config.json.

    Raises:
        ValueError: it is of a known family, with a value that no class of transformers can represent.

    Example:
        >>> recognise({"model_type": "bert"}) is None
        True
        >>> size = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
        >>> recognise({"model_type": "Dream", **size}).model_class
        'Qwen2ForCausalLM'
    """
    return next((family.mapping(config) for family in FAMILIES if family.recognises(config)), None)


def is_official(config: dict[str, Any]) -> bool:
    """Whether a checkpoint is of a known family, by the content of its config.json; perhaps it cannot be mapped.

    Example:
        >>> is_official({"model_type": "llada"}), is_official({"model_type": "bert"})
        (True, False)
    """
    return any(family.recognises(config) for family in FAMILIES)


def names() -> list[str]:
    """The names of the known families.

    Example:
        >>> "llada_moe" in names()
        True
    """
    return [family.__name__.rpartition(".")[2] for family in FAMILIES]


__all__ = ["Mapping", "is_official", "marker_of", "names", "recognise"]
