"""Tiny random DiffusionGemma models: milliseconds a forward, sure of some tokens and unsure of others."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

needs_diffusion_gemma = pytest.mark.skipif(
    not hasattr(transformers, "DiffusionGemmaForBlockDiffusion"), reason="this transformers has no DiffusionGemma"
)

CANVAS, VOCAB, WINDOW = 8, 512, 16


def tiny_diffusion_gemma(
    sureness: float = 40.0, seed: int = 0, special_tokens: dict[str, int] | None = None, **text: object
) -> nn.Module:
    """A fresh model in eval mode, float32: two layers, one of them with a sliding window, and two of four experts.

    Args:
        sureness: the embedding, and with it the head, is multiplied by this. At 1 every token is as likely as any
            other; at 40 about half of the positions of a step are accepted.
        seed: of the weights.
        special_tokens: of the configuration.
        text: replace entries of the text model's configuration.
    """
    sizes = dict(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_global_key_value_heads=1,
        head_dim=16,
        global_head_dim=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=16,
        max_position_embeddings=256,
        use_bidirectional_attention="vision",
    )
    vision = transformers.AutoConfig.for_model(
        "gemma4_vision", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, head_dim=16
    )
    config = transformers.DiffusionGemmaConfig(
        text_config=transformers.DiffusionGemmaTextConfig(**sizes | text),
        vision_config=vision,
        canvas_length=CANVAS,
        image_token_id=VOCAB - 1,
        boi_token_id=VOCAB - 2,
        eoi_token_id=VOCAB - 3,
        **special_tokens or {},
    )
    torch.manual_seed(seed)
    model = transformers.DiffusionGemmaForBlockDiffusion(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(sureness)
        for number, layer in enumerate(model.model.decoder.layers):  # encoder and decoder are two functions
            layer.layer_scalar.fill_(0.9 - 0.1 * number)
    return model
