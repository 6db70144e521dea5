"""BERT, ModernBERT and RoBERTa as chat models: what scripts of dLLM 0.1 use with them."""

from dllm.core.samplers import MDLMSampler, MDLMSamplerConfig
from dllm.core.trainers import MDLMConfig, MDLMTrainer

__all__ = ["MDLMConfig", "MDLMSampler", "MDLMSamplerConfig", "MDLMTrainer"]
