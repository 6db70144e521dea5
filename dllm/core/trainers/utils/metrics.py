"""torchmetrics metrics for language models: weighted mean, negative log-likelihood, perplexity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchmetrics
from torch import Tensor


class MeanMetric(torchmetrics.MeanMetric):
    """torchmetrics' weighted mean over batches and ranks since the last reset, with sums in float64.

    In float32 a count stops growing at 2^24 tokens. torchmetrics' own `update` waits for the device in every call to
    look for NaNs, and with `nan_strategy="disable"` version 1.9 ignores the weights. So `update` is replaced: it does
    not wait for the device, and a NaN makes the mean NaN.

    Args:
        device: of the sums and the values; sums are float32 on devices without float64.
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
        """Add values of any shape, with weights that broadcast to it, 1 if not given."""
        value = self._as_sum(value)
        weight = torch.ones_like(value) if weight is None else self._as_sum(weight).expand_as(value)
        self.mean_value = self.mean_value + (value * weight).sum()
        self.weight = self.weight + weight.sum()

    def _as_sum(self, value: float | Tensor) -> Tensor:
        value = value.detach() if isinstance(value, Tensor) else value
        return torch.as_tensor(value, dtype=self.dtype, device=self.device)


class EntryMean(MeanMetric):
    """The mean of one entry of the values that are recorded together, None if it was never there.

    Args:
        name: of the entry.
        device: of the sums.

    Example:
        >>> length = EntryMean("length")
        >>> length.update(values={"length": torch.tensor([2, 4]), "reward": 1.0})
        >>> float(length.compute())
        3.0
    """

    def __init__(self, name: str, device: torch.device | str = "cpu"):
        super().__init__(device)
        self.name = name

    def update(self, values: Mapping[str, float | Tensor]) -> None:
        """Add the entry, if it is there."""
        if self.name in values:
            super().update(values[self.name])

    def compute(self) -> Tensor | None:
        """The mean over all ranks."""
        return super().compute() if self.weight else None


class NextTokenNLL(MeanMetric):
    """Mean negative log-likelihood of next tokens, recorded beside other values under names of its own.

    Example:
        >>> nll = NextTokenNLL()
        >>> nll.update(next_value=2.0, next_weight=10)
        >>> float(nll.compute())
        2.0
    """

    def update(self, next_value: float | Tensor, next_weight: float | Tensor) -> None:
        """Add values, with weights that broadcast to them."""
        super().update(next_value, next_weight)


class SumOfMeans:
    """A weighted sum of means that are taken apart from each other: the loss of terms with normalisers of their own.

    Args:
        weights: of the means.
        device: of the sums.

    Example:
        >>> loss = SumOfMeans((1.0, 0.5))
        >>> loss.update(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1, 1], [1, 3]]))
        >>> float(loss.compute())
        3.75
    """

    def __init__(self, weights: Sequence[float], device: torch.device | str = "cpu"):
        self.weights, self.means = tuple(weights), [MeanMetric(device) for _ in weights]

    @property
    def update_called(self) -> bool:
        return self.means[0].update_called

    def update(self, values: Tensor, weights: Tensor) -> None:
        """Add values [B, k] with weights [B, k], a column for each mean."""
        for mean, value, weight in zip(self.means, values.unbind(1), weights.unbind(1), strict=True):
            mean.update(value, weight)

    def compute(self) -> Tensor:
        """The sum over all ranks."""
        return sum(weight * mean.compute() for weight, mean in zip(self.weights, self.means, strict=True))


class NLLMetric(MeanMetric):
    """Mean negative log-likelihood in nats per token. Values are means over tokens, weights are numbers of tokens.

    Example:
        >>> nll = NLLMetric()
        >>> nll.update(2.0, 10)
        >>> float(nll.compute())
        2.0
    """


class PPLMetric(NLLMetric):
    """Perplexity, exp(mean negative log-likelihood). Takes the same values as :class:`NLLMetric`.

    Example:
        >>> ppl = PPLMetric()
        >>> ppl.update(0.0, 10)
        >>> float(ppl.compute())
        1.0
    """

    def compute(self) -> Tensor:
        """exp of the mean over all ranks."""
        return super().compute().exp()
