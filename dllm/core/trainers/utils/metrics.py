"""Running means over batches and ranks: negative log-likelihood and perplexity."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class MeanMetric:
    """Weighted mean of all values seen since the last reset, over all ranks.

    Sums are float64 (float32 on devices without it) on the device of the values; nothing is read back before `compute`,
    which every rank has to call.

    Args:
        device: where the sums live; of the first value if not given.

    Example:
        >>> mean = MeanMetric()
        >>> mean.update(torch.tensor([1.0, 4.0]), torch.tensor([2, 1]))
        >>> float(mean.compute())
        2.0
    """

    def __init__(self, device: torch.device | str | None = None):
        self.device = None if device is None else torch.device(device)
        self.reset()

    def reset(self) -> None:
        """Forget what was seen."""
        self._sums: Tensor | None = None

    def update(self, value: float | Tensor, weight: float | Tensor = 1.0) -> None:
        """Take in values of any shape with weights that broadcast to it."""
        if self.device is None:
            self.device = value.device if isinstance(value, Tensor) else torch.device("cpu")
        value, weight = self._as_sum(value), self._as_sum(weight)
        seen = torch.stack([(value * weight).sum(), weight.expand_as(value * weight).sum()])
        self._sums = seen if self._sums is None else self._sums + seen

    def compute(self) -> Tensor:
        """The mean over all ranks; NaN where nothing with a weight was seen."""
        sums = self._as_sum([0.0, 0.0]) if self._sums is None else self._sums.clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        return sums[0] / sums[1]

    def _as_sum(self, value: float | list[float] | Tensor) -> Tensor:
        device = self.device or torch.device("cpu")
        value = value.detach() if isinstance(value, Tensor) else value
        return torch.as_tensor(value, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)


class NLLMetric(MeanMetric):
    """Mean negative log-likelihood, nats per token: values are means over tokens, weights the numbers of tokens.

    Example:
        >>> nll = NLLMetric()
        >>> nll.update(2.0, 10)
        >>> float(nll.compute())
        2.0
    """


class PPLMetric(MeanMetric):
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
