"""Decoding of sampled tokens to text, re-exported under its dLLM 0.1 name."""

from dllm.chat.trim import infill_trim, sample_trim

__all__ = ["infill_trim", "sample_trim"]
