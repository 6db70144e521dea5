"""Nemotron's decoding as its authors write it, on a causal model of transformers, for rows of one length.

Causal passes and steps run transformers' own cache; a step stores the logits of the whole block, takes softmax of all
of them, draws in float64, and loops over the rows. All rows wait for a block's last mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Tensor,
    *,
    mask_id: int,
    max_new_tokens: int,
    block_length: int,
    threshold: float,
    temperature: float = 0.0,
) -> tuple[Tensor, int]:
    """Continue prompts [B, P] of one length; returns the texts, and how often the model ran."""
    from transformers import DynamicCache

    cache, tokens, runs = DynamicCache(), prompt, 1
    last = model(prompt, past_key_values=cache, use_cache=True).logits[:, -1]
    for _ in range(max_new_tokens // block_length):
        block = prompt.new_full((len(prompt), block_length), mask_id)
        block[:, 0] = _choice(last, temperature)
        while bool((block == mask_id).any()):
            kept = cache.get_seq_length()
            seen = torch.ones(1, 1, block_length, kept + block_length, dtype=torch.bool, device=block.device)
            logits = model(block, attention_mask=seen, past_key_values=cache, use_cache=True).logits
            cache.crop(-block_length)
            _commit(block, logits, mask_id, threshold, temperature)
            runs += 1
        tokens = torch.cat([tokens, block], 1)
        last = model(block, past_key_values=cache, use_cache=True).logits[:, -1]
        runs += 1
    return tokens, runs


def _choice(logits: Tensor, temperature: float) -> Tensor:
    """A token of each row of logits."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(torch.softmax(logits / temperature, -1), 1)[:, 0]


def _commit(block: Tensor, logits: Tensor, mask_id: int, threshold: float, temperature: float) -> None:
    """Replace masks of a block by the proposals of high probability, and at least by the surest."""
    masked = block == mask_id
    noisy = logits
    if temperature > 0:
        noise = torch.rand_like(logits, dtype=torch.float64)
        noisy = logits.double().exp() / (-noise.log()) ** temperature
    token = noisy.argmax(-1)
    confidence = logits.softmax(-1).gather(-1, token[..., None])[..., 0]
    confidence = torch.where(masked, confidence, -torch.inf)
    for row in range(len(block)):
        left = int(masked[row].sum())
        for rank, place in enumerate(confidence[row].topk(left).indices):
            if rank == 0 or confidence[row, place] >= threshold:
                block[row, place] = token[row, place]
