"""dLLM 0.1's evaluation: the likelihood of one request by Monte Carlo, and the text of one request.

Each request runs alone. Its context runs anew with every mask, and the logits of every position are stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.baselines import mdlm


@torch.no_grad()
def log_likelihood(
    model: torch.nn.Module,
    context: Sequence[int],
    target: Sequence[int],
    *,
    mask_id: int,
    mc_num: int = 128,
    batch_size: int = 32,
    generator: torch.Generator | None = None,
) -> float:
    """The Monte-Carlo estimate of log p(target | context), in nats.

    Of the n target tokens, row i of a batch masks x_i tokens, drawn uniformly. Its loss is the sum of their
    cross-entropies times n / x_i.

    Args:
        context, target: token ids.
        mc_num: rows in all, a multiple of batch_size.
        batch_size: rows of a forward pass.

    Returns:
        The negative mean loss of the rows.

    Source: LLaDA (arXiv:2502.09992), equation 6 of its appendix on evaluation, as dLLM 0.1 has it.
    """
    sequence = torch.tensor([[*context, *target]]).repeat(batch_size, 1)
    n, losses = len(target), []
    for _ in range(mc_num // batch_size):
        sizes = mask_sizes(n, batch_size, int(torch.randint(1, n + 1, (1,), generator=generator)))
        rank = torch.rand(batch_size, n, generator=generator).argsort(dim=1).argsort(dim=1)
        masked = torch.zeros_like(sequence, dtype=torch.bool)
        masked[:, len(context) :] = rank < sizes[:, None]
        logits = model(sequence.masked_fill(masked, mask_id)).logits
        loss = F.cross_entropy(logits[masked].float(), sequence[masked], reduction="none")
        weight = (n / sizes)[:, None].expand_as(masked)[masked]
        losses.append(float((loss * weight).sum()) / batch_size)
    return -sum(losses) / len(losses)


def mask_sizes(n: int, batch_size: int, first: int) -> Tensor:
    """The number of masked tokens of each row, int64 [batch_size], in 1..n.

    From `first`, in even steps of n / batch_size, rounded (halves to even), and wrapped around.

    Example:
        >>> mask_sizes(4, 4, first=2)
        tensor([2, 3, 4, 1])
    """
    end = first + (batch_size - 1) * (n / batch_size)
    return (torch.linspace(first, end, batch_size).round().long() - 1) % n + 1


def generate(
    model: torch.nn.Module, prompt: Sequence[int], *, mask_id: int, eos_id: int, max_new_tokens: int, block_size: int
) -> list[int]:
    """The tokens after one prompt: all steps run, whatever the text says, and everything after EOS is cut."""
    canvas = mdlm.sample(
        model,
        [torch.tensor(prompt)],
        mask_id=mask_id,
        eos_id=eos_id,
        max_new_tokens=max_new_tokens,
        block_size=block_size,
        steps=max_new_tokens,
    )
    tokens = canvas[0, len(prompt) :].tolist()
    return tokens[: tokens.index(eos_id)] if eos_id in tokens else tokens
