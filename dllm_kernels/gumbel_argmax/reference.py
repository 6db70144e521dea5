"""Gumbel-argmax with confidence in eager PyTorch: the specification. Formulae: `api.py`; the draw: `draw.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels.draw import draw
from dllm_kernels.logits import STATISTICS_TEMPERATURES, as_numbers, softcapped


def gumbel_argmax(
    logits: Tensor,
    temperature: Tensor | None = None,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    step: Tensor | None = None,
    suppress: Tensor | None = None,
    begin_suppress: Tensor | None = None,
    tempered: bool = False,
    softcap: float | None = None,
    floor: Tensor | None = None,
    rows: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """token, log_prob, margin, neg_entropy, lse, argmax of the chosen rows.

    Arguments as in the public function, already checked; per-row ones are [R], and `floor` is [N]: logits below it
    count as -inf. float64 logits are computed in float64 (the noise stays float32): that is the truth of the tests.

    Example:
        >>> token, log_prob, *_ = gumbel_argmax(torch.tensor([[0.0, 1.0]], dtype=torch.float64))
        >>> token, log_prob
        (tensor([1]), tensor([-0.3133], dtype=torch.float64))
    """
    n_rows, vocab_size = logits.shape
    chosen = torch.arange(n_rows, device=logits.device) if rows is None else rows
    in_range = (chosen >= 0) & (chosen < n_rows)
    if count is not None:
        in_range &= torch.arange(len(chosen), device=logits.device) < count
    if n_rows == 0:
        return _nothing(len(chosen), logits)
    safe = chosen.clamp(0, n_rows - 1)

    x = softcapped(logits[safe], softcap)
    if suppress is not None:
        x = x.masked_fill(suppress, -torch.inf)
    if floor is not None:
        x = x.masked_fill(x < floor[:, None], -torch.inf)
    valid = in_range & (x.amax(-1) > -torch.inf)
    x = torch.where(valid[:, None], x, 0.0)  # keeps rows that are thrown away free of NaN

    token = argmax = x.argmax(-1)
    if temperature is not None:
        token = draw(x, temperature[safe], seeds[safe], positions[safe], step[safe])

    y = x if begin_suppress is None else x.masked_fill(begin_suppress, -torch.inf)
    measurable = valid & (y.amax(-1) > -torch.inf)
    y = torch.where(measurable[:, None], y, 0.0)
    T = torch.ones((), dtype=x.dtype)
    if tempered and temperature is not None:
        T = temperature[safe].to(x.dtype)
        T = torch.where(T > 0, T.clamp(*STATISTICS_TEMPERATURES), 1.0)

    likeliest = y.topk(min(2, vocab_size)).values
    gap = (y - likeliest[:, :1]) / T.unsqueeze(-1)
    weight = gap.exp()
    total = weight.sum(-1)
    log_total = total.log()
    log_prob = gap.gather(-1, token[:, None]).squeeze(-1) - log_total
    second = ((likeliest[:, 1] - likeliest[:, 0]) / T).exp() if vocab_size > 1 else torch.zeros_like(total)
    margin = (1 - second) / total
    neg_entropy = torch.where(weight > 0, weight * gap, 0.0).sum(-1) / total - log_total
    lse = likeliest[:, 0] / T + log_total
    return (
        torch.where(valid, token, -1),
        torch.where(measurable, log_prob, -torch.inf),
        torch.where(measurable, margin, 0.0),
        torch.where(measurable, neg_entropy, -torch.inf),
        torch.where(measurable, lse, -torch.inf),
        torch.where(valid, argmax, -1),
    )


def _nothing(n: int, logits: Tensor) -> tuple[Tensor, ...]:
    real = as_numbers(logits).new_full((n,), -torch.inf)
    token = torch.full((n,), -1, device=logits.device)
    return token, real, torch.zeros_like(real), real.clone(), real.clone(), token.clone()
