"""How kernels read logits and temperatures, in PyTorch (in Triton: `logits_triton.py`)."""

from __future__ import annotations

import torch
from torch import Tensor

# Draws and statistics of softmax(l / T) clamp T to these, so that no gap times 1 / T is NaN.
STATISTICS_TEMPERATURES = (1e-30, 1e30)


def as_numbers(logits: Tensor) -> Tensor:
    """float32 (or float64) logits with NaN as -inf and +inf as the largest finite float32.

    Example:
        >>> as_numbers(torch.tensor([float("nan"), 1.0])).tolist()
        [-inf, 1.0]
    """
    x = logits if logits.dtype == torch.float64 else logits.float()
    return x.nan_to_num(nan=-torch.inf, posinf=torch.finfo(torch.float32).max, neginf=-torch.inf)
