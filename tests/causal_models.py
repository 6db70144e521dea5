"""Tiny causal models of transformers made bidirectional, the bodies of samplers that keep a cache."""

from __future__ import annotations

import functools

import torch
import transformers
from torch import nn

from dllm.models import bidirectional
from tests.models import MASK_ID

EOS = 40


@functools.lru_cache
def causal_model(
    family: str = "Llama", device: str = "cpu", *, favoured: float = 0.0, dtype=torch.float32, **options
) -> nn.Module:
    """A tiny model with weights that make tokens and confidences differ from place to place; the mask token is never
    likely, and EOS the more so the more it is favoured."""
    size = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    size |= dict(head_dim=8, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False) | options
    config = getattr(transformers, f"{family}Config")(**size)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                parameter.copy_(noise * 2.5 / parameter.shape[1] ** 0.5)
            else:
                parameter.copy_(1 + 0.1 * noise)
        head = nn.Linear(32, 97)
        head.weight.data, head.bias.data = model.lm_head.weight.data, torch.zeros(97)
        head.bias[MASK_ID], head.bias[EOS] = -20.0, favoured
        model.set_output_embeddings(head)
    return bidirectional(model).to(device, dtype)
