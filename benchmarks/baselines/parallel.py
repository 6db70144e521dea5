"""A loop that commits as many tokens per step as a rule allows, without a cache.

It is approximate: tokens committed in one step are chosen independently, so an answer may differ from that of one token
per step. A rule orders the eligible positions of a row and says how many of the first are committed. A block ends when
no row has a masked position in it, so the rows of a batch wait for the slowest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.baselines.llada import left_padded_canvas
from benchmarks.card_loop import Noise, TorchNoise, guided_logits


class Rule(NamedTuple):
    """How many positions a row commits in a step.

    order: by "confidence", descending, or by "entropy", ascending. count: takes the ordered values and the step within
    the block, and returns the number of positions to commit.
    """

    order: str
    count: Callable[[Tensor, int], int]


def threshold(threshold: float) -> Rule:
    """Fast-dLLM: all positions with a confidence of at least `threshold`, and at least one."""
    return Rule("confidence", lambda confidence, step: max(1, int((confidence >= threshold).sum())))


def factor(factor: float) -> Rule:
    """Fast-dLLM: the longest prefix of c_1 >= c_2 >= ... with c_r >= 1 - factor / (r + 1), at least one position."""

    def count(confidence: Tensor, step: int) -> int:
        rank = torch.arange(1, len(confidence) + 1, device=confidence.device)
        return max(1, _prefix(confidence >= 1 - factor / (rank + 1)))

    return Rule("confidence", count)


def llada2(threshold: float, steps: int, block_length: int) -> Rule:
    """LLaDA 2.0: all positions above `threshold`, and at least the scheduled number of the step.

    The schedule divides a block evenly over `steps`.
    """

    def count(confidence: Tensor, step: int) -> int:
        scheduled = block_length // steps + (step < block_length % steps)
        return max(scheduled, int((confidence > threshold).sum()))

    return Rule("confidence", count)


def entropy_bound(gamma: float) -> Rule:
    """Entropy bound: positions by rising entropy, while the entropies before a position sum to at most `gamma`."""
    return Rule("entropy", lambda entropy, step: _prefix(entropy.cumsum(dim=0) - entropy <= gamma))


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Tensor,
    attention_mask: Tensor | None = None,
    *,
    rule: Rule,
    mask_id: int,
    gen_length: int = 128,
    block_length: int = 32,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    noise: Noise | None = None,
    mark: Callable[[str], None] = lambda part: None,
) -> Tensor:
    """Complete left-padded prompts [B, P].

    Args:
        attention_mask: [B, P], 0 at padding; None: no padding.
        rule: how many positions a row commits in a step.
        The others: as in the model card's loop.

    Returns:
        int64 [B, P + gen_length].

    Raises:
        ValueError: the blocks do not divide `gen_length`.
    """
    if gen_length % block_length:
        raise ValueError(f"gen {gen_length}, block {block_length}: blocks must divide gen")
    noise = noise or TorchNoise()
    canvas, attention_mask = left_padded_canvas(prompt, attention_mask, gen_length, mask_id)
    given = canvas != mask_id
    for block_end in range(prompt.shape[1] + block_length, canvas.shape[1] + 1, block_length):
        left_of_end = torch.arange(canvas.shape[1], device=canvas.device) < block_end
        for step in range(block_length):  # each step commits a token in every row with a masked position left
            eligible = (canvas == mask_id) & left_of_end
            if not eligible.any():
                break
            logits = guided_logits(model, canvas, given, mask_id, cfg_scale, attention_mask)
            tokens = noise.choose(logits, temperature, eligible, step)
            tokens, scores = torch.where(eligible, tokens, canvas), scores_of(logits, tokens, rule.order)
            mark("head")
            commit(canvas, tokens, scores, eligible, rule, step)
            mark("transfer")
    return canvas


def commit(canvas: Tensor, tokens: Tensor, scores: Tensor, eligible: Tensor, rule: Rule, step: int) -> None:
    """Commit in each row of `canvas` the eligible tokens that the rule allows; all tensors [B, L]."""
    for row in range(len(canvas)):
        positions = eligible[row].nonzero()[:, 0]
        if len(positions) == 0:
            continue
        ordered, order = scores[row, positions].sort(descending=rule.order == "confidence", stable=True)
        chosen = positions[order[: rule.count(ordered, step)]]
        canvas[row, chosen] = tokens[row, chosen]


def scores_of(logits: Tensor, tokens: Tensor, order: str) -> Tensor:
    """Probability of each token, or entropy of each position, [B, L], under the float64 softmax of the raw logits."""
    probabilities = logits.to(torch.float64).softmax(dim=-1)
    if order == "confidence":
        return probabilities.gather(-1, tokens[..., None])[..., 0]
    return torch.special.entr(probabilities).sum(dim=-1)


def _prefix(holds: Tensor) -> int:
    """Length of the longest prefix that is all true."""
    return int(holds.long().cumprod(dim=0).sum())
