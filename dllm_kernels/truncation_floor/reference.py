"""Top-k and top-p in eager PyTorch: the specification. Formulae: `api.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels.logits import STATISTICS_TEMPERATURES, as_numbers


def truncation_floor(
    logits: Tensor,
    temperature: Tensor | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    suppress: Tensor | None = None,
    rows: Tensor | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """The smallest logit that is kept, [N].

    Arguments as in the public function, already checked; per-row ones are [R]. float64 logits are computed in float64:
    that is the truth of the tests.

    Example:
        >>> truncation_floor(torch.tensor([[0.0, 3.0, 1.0]], dtype=torch.float64), top_k=2)
        tensor([1.], dtype=torch.float64)
    """
    n_rows = len(logits)
    chosen = torch.arange(n_rows, device=logits.device) if rows is None else rows
    used = (chosen >= 0) & (chosen < n_rows)
    if count is not None:
        used &= torch.arange(len(chosen), device=logits.device) < count
    if n_rows == 0 or (top_k is None and top_p is None):
        return as_numbers(logits).new_full((len(chosen),), -torch.inf)
    safe = chosen.clamp(0, n_rows - 1)
    x = as_numbers(logits[safe])
    if suppress is not None:
        x = x.masked_fill(suppress, -torch.inf)
    used &= x.amax(-1) > -torch.inf
    x = torch.where(used[:, None], x, 0.0)

    T = torch.ones((), dtype=x.dtype, device=x.device)
    if temperature is not None:
        T = temperature[safe, None].to(x.dtype)
        T = torch.where(T > 0, T.clamp(*STATISTICS_TEMPERATURES), 1.0)
    l = x.sort(descending=True).values
    larger = torch.searchsorted(-l, -l)  # how many logits are larger than each: the first place of its ties
    kept = l > -torch.inf
    if top_p is not None:
        p = ((l - l[:, :1]) / T).softmax(-1)
        mass = torch.nn.functional.pad(p.cumsum(-1), (1, 0)).gather(-1, larger)
        kept &= mass <= top_p
    if top_k is not None:
        kept &= larger < top_k
    floor = torch.where(kept, l, torch.inf).amin(-1)
    return torch.where(used, floor, -torch.inf)
