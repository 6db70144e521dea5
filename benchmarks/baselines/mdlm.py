"""dLLM 0.1's MDLMSampler: blocks start at each prompt's end, counts come from the noise schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.card_loop import REMASKING, Noise, TorchNoise, guided_logits, token_probability, transfer


@torch.no_grad()
def sample(
    model: nn.Module,
    inputs: Sequence[Tensor],
    *,
    mask_id: int,
    eos_id: int,
    max_new_tokens: int = 128,
    block_size: int = 128,
    steps: int = 128,
    temperature: float = 0.0,
    remasking: str = "low_confidence",
    cfg_scale: float = 0.0,
    cfg_keep_tokens: Sequence[int] = (),
    suppress_tokens: Sequence[int] = (),
    begin_suppress_tokens: Sequence[int] = (),
    right_shift_logits: bool = False,
    noise: Noise | None = None,
    mark: Callable[[str], None] = lambda part: None,
) -> Tensor:
    """Complete B prompts with the linear noise schedule.

    Args:
        inputs: the tokens of the prompts, vectors of any lengths.
        cfg_keep_tokens: prompt tokens that stay unmasked in the unconditional canvas.
        suppress_tokens: never chosen. begin_suppress_tokens: chosen, but with confidence 0.
        right_shift_logits: the logits of position p are those at p - 1.
        The others: as in dLLM 0.1.

    Returns:
        int64 [B, longest prompt + max_new_tokens]: prompt, completion, then EOS.

    Raises:
        ValueError: `remasking` is unknown.
    """
    if remasking not in REMASKING:
        raise ValueError(f"remasking must be one of {', '.join(REMASKING)}, got {remasking!r}")
    noise = noise or TorchNoise()
    canvas, ends = start_canvas(inputs, max_new_tokens, mask_id, eos_id)
    column = torch.arange(canvas.shape[1], device=canvas.device)
    real = column < ends[:, None]
    given = (canvas != mask_id) & real & ~torch.isin(canvas, canvas.new_tensor(list(cfg_keep_tokens)))
    attention_mask = None if bool(real.all()) else real.long()
    blocks = -(-max_new_tokens // block_size)
    for block in range(blocks):
        block_start = ends - max_new_tokens + block * block_size
        block_end = torch.minimum(block_start + block_size, ends)[:, None]
        in_block = (column >= block_start[:, None]) & (column < block_end)
        counts = scheduled_counts(((canvas == mask_id) & in_block).sum(dim=1), -(-steps // blocks))
        for step in range(counts.shape[1]):
            masked = canvas == mask_id
            logits = guided_logits(model, canvas, given, mask_id, cfg_scale, attention_mask)
            logits[:, :, list(suppress_tokens)] = -torch.inf
            if right_shift_logits:
                logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
            tokens = noise.choose(logits, temperature, masked & (column < block_end), step)
            logits[:, :, list(begin_suppress_tokens)] = -torch.inf
            if REMASKING[remasking] == "low_confidence":
                confidence = token_probability(logits, tokens)
            else:
                confidence = noise.random_confidence(masked, step)
            mark("head")
            confidence = torch.where(masked & (column < block_end), confidence, -torch.inf)
            transfer(canvas, torch.where(masked, tokens, canvas), confidence, counts[:, step])
            mark("transfer")
    return canvas


def start_canvas(inputs: Sequence[Tensor], max_new_tokens: int, mask_id: int, eos_id: int) -> tuple[Tensor, Tensor]:
    """The start canvas [B, L], in each row prompt, mask tokens, EOS; and the column after its mask tokens, [B]."""
    device = inputs[0].device
    ends = torch.tensor([len(tokens) + max_new_tokens for tokens in inputs], device=device)
    canvas = torch.full((len(inputs), int(ends.max())), eos_id, dtype=torch.int64, device=device)
    for row, tokens in enumerate(inputs):
        canvas[row, : len(tokens)] = tokens
        canvas[row, len(tokens) : ends[row]] = mask_id
    return canvas, ends


def scheduled_counts(totals: Tensor, steps: int) -> Tensor:
    """Tokens that each step commits in each row, int64 [B, S], with the zeros of a row moved to its end.

    With m masks left at step j the linear schedule reveals round(m p), p = 1 - (1 - alpha(s)) / (1 - alpha(t)),
    alpha(t) = 1 - t, t = (S - j) / S, s = (S - j - 1) / S; times, alpha and quotient are float32, halves round to even.

    Example:
        >>> scheduled_counts(torch.tensor([10, 2]), 4)
        tensor([[2, 3, 2, 3],
                [1, 1, 0, 0]])
    """
    alpha = 1 - torch.tensor([(steps - j) / steps for j in range(steps + 1)])
    shares = [1 - kept for kept in ((1 - alpha[1:]) / (1 - alpha[:-1])).tolist()]
    rows = []
    for left in totals.tolist():
        row = []
        for share in shares:
            row.append(min(round(left * share), left))
            left -= row[-1]
        rows.append(torch.tensor([k for k in row if k], dtype=torch.int64))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(totals.device)
