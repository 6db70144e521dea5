"""AveragedWeights: an exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

FILE = "ema.pt"


class AveragedWeights:
    """The moving average, in float32, of every parameter of a model that is trained.

    Update n: average <- d average + (1 - d) weight, with d = min(decay, (1 + n) / (10 + n)), so that the weights at the
    start of a run are soon forgotten. The update is torch's (`get_ema_multi_avg_fn`). Its `AveragedModel` is not used:
    it copies the whole model, frozen weights too, and averages in the weights' dtype. In bfloat16, with a decay of
    0.9999, weights that moved by 0.01 in each of 1,000 updates moved its average by 0.13 where 0.31 is right.

    Args:
        model: the average starts with its weights as they are now.
        decay: in [0, 1); MDLM uses 0.9999.

    Raises:
        ValueError: the model's weights are sharded over several ranks.

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
        get_ema_multi_avg_fn(decay)(list(self.average.values()), now, self.updates)

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
