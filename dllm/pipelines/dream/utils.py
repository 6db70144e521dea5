"""The collator of Dream's fine-tuning, under the name of dLLM 0.1."""

from dllm.data.cutoff import DreamSFTCollator

__all__ = ["DreamSFTCollator"]
