"""LLaDA (8B, 1.5, iLLaDA) and LLaDA-MoE."""

from dllm.core.samplers import LLaDASampler, LLaDASamplerConfig, MDLMSampler, MDLMSamplerConfig
from dllm.core.trainers import MDLMConfig, MDLMTrainer
from dllm.pipelines.official import OfficialConfig, OfficialModel


class LLaDAConfig(OfficialConfig):
    """The configuration of LLaDA: `d_model`, `n_layers`, `n_heads`, `mlp_hidden_size`, `vocab_size`, ...

    Example:
        >>> size = dict(d_model=8, n_layers=1, n_heads=2, mlp_hidden_size=8, vocab_size=9, mask_token_id=7)
        >>> kind = dict(block_type="llama", activation_type="silu", layer_norm_type="rms", include_bias=False)
        >>> LLaDAConfig(**size, **kind, rope=True).mapped().hidden_size
        8
    """

    model_type = "llada"
    family = "llada"


class LLaDAMoEConfig(OfficialConfig):
    """The configuration of LLaDA-MoE: `hidden_size`, `num_experts`, `expert_intermediate_size`, ..."""

    model_type = "lladamoe"  # as dLLM 0.1 named it; the published files say llada
    family = "llada_moe"


class LLaDAModelLM(OfficialModel):
    """LLaDA, as a Llama or Qwen2 of transformers that attends to all positions."""

    config_class = LLaDAConfig


class LLaDAMoEModelLM(OfficialModel):
    """LLaDA-MoE, as a Qwen3-MoE of transformers that attends to all positions."""

    config_class = LLaDAMoEConfig


__all__ = [
    "LLaDAConfig",
    "LLaDAMoEConfig",
    "LLaDAMoEModelLM",
    "LLaDAModelLM",
    "LLaDASampler",
    "LLaDASamplerConfig",
    "MDLMConfig",
    "MDLMSampler",
    "MDLMSamplerConfig",
    "MDLMTrainer",
]
