"""LLaDA's generate: the model card's loop with left-padded prompts, suppression of EOS, and confidence in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.card_loop import (
    REMASKING,
    Noise,
    TorchNoise,
    guided_logits,
    token_probability,
    transfer,
    transfer_counts,
)


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Tensor,
    attention_mask: Tensor | None = None,
    *,
    mask_id: int = 126336,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    suppressed: int | None = None,
    last: tuple[int, ...] = (),
    noise: Noise | None = None,
    mark: Callable[[str], None] = lambda part: None,
) -> Tensor:
    """Complete left-padded prompts [B, P].

    Args:
        attention_mask: [B, P], 0 at padding; None: no padding.
        suppressed: a token whose logit is set to -inf, such as EOS.
        last: tokens whose logits are set to -inf after the tokens are chosen, such as EOS and end of turn: they get
            confidence 0 and are committed last.
        The others: as in the model card's loop.

    Returns:
        int64 [B, P + gen_length].

    Raises:
        ValueError: lengths or steps do not divide, or `remasking` is unknown.
    """
    if gen_length % block_length or steps % (gen_length // block_length):
        raise ValueError(f"gen {gen_length}, block {block_length}, steps {steps}: blocks must divide gen and steps")
    if remasking not in REMASKING:
        raise ValueError(f"remasking must be one of {', '.join(REMASKING)}, got {remasking!r}")
    noise = noise or TorchNoise()
    canvas, attention_mask = left_padded_canvas(prompt, attention_mask, gen_length, mask_id)
    given = canvas != mask_id
    for block_end in range(prompt.shape[1] + block_length, canvas.shape[1] + 1, block_length):
        left_of_end = torch.arange(canvas.shape[1], device=canvas.device) < block_end
        counts = transfer_counts(
            canvas[:, block_end - block_length : block_end] == mask_id, steps * block_length // gen_length
        )
        for step in range(counts.shape[1]):
            eligible = (canvas == mask_id) & left_of_end
            logits = guided_logits(model, canvas, given, mask_id, cfg_scale, attention_mask)
            if suppressed is not None:
                logits[:, :, suppressed] = -torch.inf
            tokens = noise.choose(logits, temperature, eligible, step)
            logits[:, :, list(last)] = -torch.inf
            if REMASKING[remasking] == "low_confidence":
                confidence = token_probability(logits.to(torch.float64), tokens)
            else:
                confidence = noise.random_confidence(eligible, step)
            mark("head")
            confidence = torch.where(eligible, confidence, -torch.inf)
            transfer(canvas, torch.where(eligible, tokens, canvas), confidence, counts[:, step])
            mark("transfer")
    return canvas


def left_padded_canvas(
    prompt: Tensor, attention_mask: Tensor | None, gen_length: int, mask_id: int
) -> tuple[Tensor, Tensor | None]:
    """Prompts [B, P] followed by mask tokens, and the attention mask extended to them; None where it is None."""
    canvas = nn.functional.pad(prompt, (0, gen_length), value=mask_id)
    if attention_mask is not None:
        attention_mask = nn.functional.pad(attention_mask, (0, gen_length), value=1)
    return canvas, attention_mask
