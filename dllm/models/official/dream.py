"""Dream (v0, Dream-Coder, DiffuCoder): a Qwen2 whose logits are shifted to the right."""

from __future__ import annotations

from typing import Any

from dllm.models.official.fields import needed, refuse, rotary, unchanged
from dllm.models.official.mapping import Mapping

ALLOWED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "rope_scaling": (None, False),
    "use_mrope": (False, None),
    "use_sliding_window": (False, None),
}


def recognises(config: dict[str, Any]) -> bool:
    """Whether this is the configuration of a Dream checkpoint."""
    return config.get("model_type") in ("Dream", "dream")


def mapping(config: dict[str, Any]) -> Mapping:
    """The mapping of a Dream checkpoint. Names of tensors and fields are Qwen2's.

    The official code lets padded queries attend to nothing; here they attend as others do. Rows of real tokens are
    equal.

    Raises:
        ValueError: a field has a value that Qwen2 cannot represent, or is missing.

    Source: Dream (arXiv:2508.15487), Dream-org/Dream-v0-Instruct-7B.
    """
    needed("dream", config, ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"))
    refuse("dream", config, ALLOWED)
    fields = unchanged(config, "mask_token_id", "use_mrope", "sliding_window") | rotary(config)
    return Mapping(
        family="dream",
        model_class="Qwen2ForCausalLM",
        official=config,
        fields=fields | {"use_sliding_window": False},
        right_shift=True,
        mask_token_id=config.get("mask_token_id"),
    )
