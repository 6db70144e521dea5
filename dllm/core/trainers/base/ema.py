"""AveragedWeights: an exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor

FILE = "ema.pt"


class AveragedWeights:
    """Exponential moving average, in float32, of every trained parameter of a model.

    Update n sets average <- average + (1 - d) (weight - average) with d = min(decay, (1 + n) / (10 + n)), so that the
    first weights of a run lose their influence quickly.

    Args:
        model: its present weights are the first average.
        decay: 0 <= decay < 1; MDLM takes 0.9999.

    Raises:
        ValueError: the model's weights are sharded over ranks.

    Source: MDLM (arXiv:2406.07524), with the warm-up of its decay.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> torch.nn.init.zeros_(model.weight)
        Parameter containing:
        tensor([[0.]], requires_grad=True)
        >>> average = AveragedWeights(model, decay=0.9)
        >>> with torch.no_grad():
        ...     _ = model.weight.fill_(1.0)
        >>> average.update()  # d = 2 / 11
        >>> with average.applied():
        ...     round(model.weight.item(), 4)
        0.8182
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        if any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in self.weights.values()):
            raise ValueError("ema_decay needs every weight whole on every rank: with FSDP or ZeRO-3 leave it unset")
        self.average = {name: weight.detach().float().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the present weights to the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = [weight.detach().float() for weight in self.weights.values()]
        torch._foreach_lerp_(list(self.average.values()), now, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights inside this context, and its own afterwards."""
        own = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._copy(self.average)
        try:
            yield
        finally:
            self._copy(own)

    def save(self, folder: str | Path) -> None:
        """Write the average and its number of updates into a checkpoint."""
        average = {name: tensor.cpu() for name, tensor in self.average.items()}
        torch.save({"updates": self.updates, "average": average}, Path(folder) / FILE)

    def load(self, folder: str | Path) -> None:
        """Continue from what :meth:`save` wrote."""
        saved = torch.load(Path(folder) / FILE, map_location="cpu", weights_only=True)
        self.updates = saved["updates"]
        for name, tensor in self.average.items():
            tensor.copy_(saved["average"][name])

    @torch.no_grad()
    def _copy(self, source: dict[str, torch.Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(source[name])
