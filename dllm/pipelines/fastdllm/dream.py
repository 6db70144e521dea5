"""Fast-dLLM's sampler for Dream, and the names of Dream's model, as dLLM 0.1 calls them."""

from __future__ import annotations

from dllm.core.samplers.fast_dllm_dream import FastdLLMDreamSampler, FastdLLMDreamSamplerConfig
from dllm.pipelines.dream import DreamConfig as FastdLLMDreamConfig
from dllm.pipelines.dream import DreamModel as FastdLLMDreamModel

__all__ = ["FastdLLMDreamConfig", "FastdLLMDreamModel", "FastdLLMDreamSampler", "FastdLLMDreamSamplerConfig"]
