"""The argument dataclasses, under the name that scripts for dLLM 0.1 import them by."""

from dllm.configs import DataArguments, ModelArguments, TrainingArguments, resolve_with_base_env

__all__ = ["DataArguments", "ModelArguments", "TrainingArguments", "resolve_with_base_env"]
