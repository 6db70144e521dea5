"""Models and tokenizers, loaded with what their family needs for masked diffusion."""

from dllm.models.adapters import load_peft
from dllm.models.bidirectional import bidirectional, causal
from dllm.models.editflow import EditFlowConfig, EditFlowModel
from dllm.models.load import get_model, new_model
from dllm.models.packed_attention import with_packed_attention
from dllm.models.sources import get_config
from dllm.models.tokenizer import get_tokenizer

__all__ = [
    "EditFlowConfig",
    "EditFlowModel",
    "bidirectional",
    "causal",
    "get_config",
    "get_model",
    "get_tokenizer",
    "load_peft",
    "new_model",
    "with_packed_attention",
]
