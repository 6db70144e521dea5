"""Running means over batches and ranks, as metrics of torchmetrics: negative log-likelihood and perplexity."""

from __future__ import annotations

from typing import Any

import torch
import torchmetrics
from torch import Tensor


class MeanMetric(torchmetrics.MeanMetric):
    """torchmetrics' weighted mean of all values seen since the last reset, over all ranks, with sums in float64.

    In float32 a count stops growing at 2^24 tokens. `update` reads nothing back from the device, and a NaN among the
    values makes the mean NaN: torchmetrics' own `update` waits for the device in every call to look for NaNs, and with
    `nan_strategy="disable"` version 1.9 leaves the weights out.

    Args:
        device: where the sums live, and the values are (float32 on devices without float64).
        options: of `torchmetrics.Metric`.

    Example:
        >>> mean = MeanMetric()
        >>> mean.update(torch.tensor([1.0, 4.0]), torch.tensor([2, 1]))
        >>> float(mean.compute())
        2.0
    """

    def __init__(self, device: torch.device | str = "cpu", **options: Any):
        super().__init__(nan_strategy="disable", **options)
        device = torch.device(device)
        self.set_dtype(torch.float32 if device.type == "mps" else torch.float64).to(device)

    def update(self, value: float | Tensor, weight: float | Tensor | None = None) -> None:
        """Take in values of any shape with weights that broadcast to it; without weights each counts as 1."""
        value = self._as_sum(value)
        weight = torch.ones_like(value) if weight is None else self._as_sum(weight).expand_as(value)
        self.mean_value = self.mean_value + (value * weight).sum()
        self.weight = self.weight + weight.sum()

    def _as_sum(self, value: float | Tensor) -> Tensor:
        value = value.detach() if isinstance(value, Tensor) else value
        return torch.as_tensor(value, dtype=self.dtype, device=self.device)


class NLLMetric(MeanMetric):
    """Mean negative log-likelihood, nats per token: values are means over tokens, weights the numbers of tokens.

    Example:
        >>> nll = NLLMetric()
        >>> nll.update(2.0, 10)
        >>> float(nll.compute())
        2.0
    """


class PPLMetric(NLLMetric):
    """Perplexity, exp of the mean negative log-likelihood; takes the same values as :class:`NLLMetric`.

    Example:
        >>> ppl = PPLMetric()
        >>> ppl.update(0.0, 10)
        >>> float(ppl.compute())
        1.0
    """

    def compute(self) -> Tensor:
        """exp of the mean over all ranks."""
        return super().compute().exp()
