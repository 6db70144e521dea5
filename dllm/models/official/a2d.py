"""A2D: Qwen2, Qwen3 and Llama models that dLLM 0.1 turned into diffusion models, under their base model's names."""

from __future__ import annotations

from typing import Any

from dllm.models.official.fields import refuse, rotary, unchanged
from dllm.models.official.mapping import Mapping

CLASSES = {"a2d-qwen2": "Qwen2ForCausalLM", "a2d-qwen3": "Qwen3ForCausalLM", "a2d-llama": "LlamaForCausalLM"}
ALLOWED: dict[str, tuple[Any, ...]] = {"use_sliding_window": (False, None)}


def recognises(config: dict[str, Any]) -> bool:
    """Whether this is the configuration of an A2D checkpoint."""
    return config.get("model_type") in CLASSES


def mapping(config: dict[str, Any]) -> Mapping:
    """The mapping of an A2D checkpoint: the base model's class, without a right shift, as it was trained.

    The mask token is one that the tokenizer has. In a checkpoint made from Llama 3 its id, 128256, is the number of
    rows of the embedding, which is enlarged on loading.

    Raises:
        ValueError: the layers have a sliding window.

    Source: dLLM 0.1 (ZHZisZZ/dllm), dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1.
    """
    refuse("a2d", config, ALLOWED)
    return Mapping(
        family="a2d",
        model_class=CLASSES[config["model_type"]],
        official=config,
        fields=unchanged(config, "mask_token_id") | rotary(config),
        mask_token_id=config.get("mask_token_id"),
    )
