"""LLaDA 2.1 (mini, flash): the models of LLaDA 2.0 with a sampler that also replaces committed tokens."""

from dllm.pipelines.llada2 import LLaDA2MoeConfig, LLaDA2MoeModelLM
from dllm.pipelines.llada21.sampler import LLaDA21Sampler, LLaDA21SamplerConfig

__all__ = ["LLaDA2MoeConfig", "LLaDA2MoeModelLM", "LLaDA21Sampler", "LLaDA21SamplerConfig"]
