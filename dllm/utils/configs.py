"""The argument dataclasses, under the name that scripts for dLLM 0.1 import them by."""

from dllm.configs import DataArguments, ModelArguments, TrainingArguments

__all__ = ["DataArguments", "ModelArguments", "TrainingArguments"]
