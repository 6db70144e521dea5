"""The argument dataclasses, under the name that scripts for dLLM 0.1 import them by."""

from dllm.configs import TrainingArguments

__all__ = ["TrainingArguments"]
