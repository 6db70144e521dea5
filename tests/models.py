"""Tiny random masked language models and prompts for them: milliseconds a forward, diverse outputs."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

FAMILIES = ("modernbert", "bert", "roberta")
MASK_ID = 3
PAD_ID = 1
FIRST_WORD = 5  # ids below are special
POSITIONS = 96


def tiny(family: str, seed: int = 0, **options) -> nn.Module:
    """A fresh model in eval mode, float32: 2 layers, hidden size 32, at most 96 positions.

    The usual initialisation makes such a model say the same everywhere; here the layers' weights have standard
    deviation 3 / sqrt(fan-in), and biases and norms are perturbed, so that tokens and confidences differ from place to
    place. As in a trained model, the mask token itself is never likely; :func:`favour` changes that.

    Args:
        family: "modernbert" (97 tokens, local attention in the second layer), "bert" or "roberta" (131 tokens).
        seed: of the weights.
        options: replace entries of the configuration.
    """
    model = _build(family, options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                scale = 2 if parameter.shape[0] == model.config.vocab_size else 3
                parameter.copy_(noise * scale / parameter.shape[1] ** 0.5)
            else:
                parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
    return favour(model, MASK_ID, -20.0).eval()


def favour(model: nn.Module, token: int, by: float) -> nn.Module:
    """Raise one token's logit everywhere, by the bias of the head."""
    with torch.no_grad():
        model.get_output_embeddings().bias[token] += by
    return model


@functools.lru_cache
def shared(family: str, device: torch.device) -> nn.Module:
    """One model per family for tests that leave it as it is."""
    return tiny(family).to(device)


def _build(family: str, options: dict) -> nn.Module:
    import transformers

    size = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, pad_token_id=PAD_ID)
    if family == "modernbert":
        special = dict(bos_token_id=0, eos_token_id=2, cls_token_id=0, sep_token_id=2)
        size |= dict(vocab_size=97, max_position_embeddings=POSITIONS, local_attention=12) | special | options
        size.setdefault("global_attn_every_n_layers", 2)
        return transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**size))
    if family == "bert":
        size |= dict(vocab_size=131, max_position_embeddings=POSITIONS) | options
        return transformers.BertForMaskedLM(transformers.BertConfig(**size))
    if family == "roberta":
        # RoBERTa counts positions from padding_idx + 1: two rows of its table are never reached
        size |= dict(vocab_size=131, max_position_embeddings=POSITIONS + 2) | options
        return transformers.RobertaForMaskedLM(transformers.RobertaConfig(**size))
    raise ValueError(f"unknown family {family!r}")


def kind_of(model: nn.Module) -> str:
    """How the logits of a model came about when it was used last: "linear", "module" or "logits"."""
    from dllm.fast.head import use

    return next(reversed(use._known[model.get_output_embeddings()].values())).kind


def make_prompt(model: nn.Module, batch: int, length: int, seed: int = 0) -> Tensor:
    """int64 [batch, length] of ordinary tokens."""
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(FIRST_WORD, model.config.vocab_size, (batch, length), generator=generator)
    return prompt.to(next(model.parameters()).device)


def left_padded(model: nn.Module, lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Prompts of the given lengths, padded on the left to the longest, and their attention mask."""
    prompt = make_prompt(model, len(lengths), max(lengths), seed)
    column = torch.arange(max(lengths), device=prompt.device)
    mask = (column >= max(lengths) - torch.tensor(lengths, device=prompt.device)[:, None]).long()
    return prompt.masked_fill(mask == 0, PAD_ID), mask
