"""Small causal checkpoints with the tokenizer of the bundled model, as folders."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from dllm.demo.shipped import SHIPPED

SIZE = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_position_embeddings=256,
)


def causal_checkpoint(folder: Path, family: str, *, spare: int = 4, dtype=torch.bfloat16, **options) -> Path:
    """A random causal model of "Qwen2", "Qwen3" or "Llama" with `spare` rows that its tokenizer does not use."""
    tokenizer = plain_tokenizer()
    tokens = dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    kind = getattr(transformers, f"{family}Config")
    config = kind(vocab_size=len(tokenizer) + spare, **SIZE | tokens | options)
    torch.manual_seed(0)
    getattr(transformers, f"{family}ForCausalLM")(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """The bundled model's tokenizer without a mask token and a chat template."""
    bundled = transformers.AutoTokenizer.from_pretrained(SHIPPED)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bundled.backend_tokenizer, eos_token=bundled.eos_token, pad_token=bundled.pad_token
    )
