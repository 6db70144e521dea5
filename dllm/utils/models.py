"""Models and tokenizers, under the name that scripts for dLLM 0.1 import them by."""

from dllm.models import get_model, get_tokenizer, load_peft

__all__ = ["get_model", "get_tokenizer", "load_peft"]
