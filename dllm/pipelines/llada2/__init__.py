"""LLaDA 2.0 (mini, flash)."""

from dllm.pipelines.llada2.sampler import LLaDA2Sampler, LLaDA2SamplerConfig
from dllm.pipelines.official import OfficialConfig, OfficialModel


class LLaDA2MoeConfig(OfficialConfig):
    """The configuration of LLaDA 2.0 and 2.1. No field has a default."""

    model_type = "llada2_moe"
    family = "llada2"


class LLaDA2MoeModelLM(OfficialModel):
    """LLaDA 2.0 or 2.1, as a GLM-4-MoE of transformers. Samplers restrict its attention to blocks."""

    config_class = LLaDA2MoeConfig


__all__ = ["LLaDA2MoeConfig", "LLaDA2MoeModelLM", "LLaDA2Sampler", "LLaDA2SamplerConfig"]
