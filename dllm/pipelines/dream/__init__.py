"""Dream (v0, Dream-Coder, DiffuCoder)."""

from transformers import Qwen2TokenizerFast as DreamTokenizer  # the same rules, without remote code

from dllm.core.samplers import DreamSampler, DreamSamplerConfig
from dllm.core.trainers import DreamTrainer
from dllm.pipelines.dream import utils
from dllm.pipelines.official import OfficialConfig, OfficialModel


class DreamConfig(OfficialConfig):
    """The configuration of Dream: Qwen2's fields and `mask_token_id`.

    Example:
        >>> size = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9, mask_token_id=7)
        >>> DreamConfig(**size).mapped().mask_token_id
        7
    """

    model_type = "Dream"
    family = "dream"


class DreamModel(OfficialModel):
    """Dream, as a Qwen2 of transformers that attends to all positions. Its logits are shifted to the right."""

    config_class = DreamConfig


__all__ = [
    "DreamConfig",
    "DreamModel",
    "DreamSampler",
    "DreamSamplerConfig",
    "DreamTokenizer",
    "DreamTrainer",
    "utils",
]
