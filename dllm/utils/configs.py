"""The argument dataclasses, re-exported under their dLLM 0.1 name."""

from dllm.configs import DataArguments, ModelArguments, TrainingArguments, resolve_with_base_env

__all__ = ["DataArguments", "ModelArguments", "TrainingArguments", "resolve_with_base_env"]
