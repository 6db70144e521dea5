"""Loading models and tokenizers, re-exported under its dLLM 0.1 name."""

from dllm.models import get_model, get_tokenizer, load_peft

__all__ = ["get_model", "get_tokenizer", "load_peft"]
