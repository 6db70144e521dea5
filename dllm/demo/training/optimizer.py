"""The shipped model's optimizer: Muon for the matrices of the layers, AdamW for all else, on one schedule.

Under Muon (Jordan et al. 2024) the model looks at the question after 200 steps, where under AdamW it takes many more.
Neither minds the scale of the loss: Muon makes every update orthogonal, AdamW divides by the gradient's own size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

WARMUP_STEPS, HIGH_STEPS, AGAIN = 100, 500, 0.1


class MuonAdamW(torch.optim.Optimizer):
    """Both optimizers as one, with a group of parameters and a learning rate for each.

    Args:
        model: a transformer whose matrices in `layers` Muon takes; AdamW takes embeddings, head, norms and biases.
        matrix_lr: learning rate of Muon.
        other_lr: learning rate of AdamW.

    Example:
        >>> model = nn.ModuleDict({"body": nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4)])})})
        >>> optimizer = MuonAdamW(model, matrix_lr=0.02, other_lr=0.003)
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.02, 0.003]
    """

    def __init__(self, model: nn.Module, *, matrix_lr: float, other_lr: float):
        matrices = {name: p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2}
        others = [p for name, p in model.named_parameters() if name not in matrices]
        self.parts = (
            torch.optim.Muon(matrices.values(), lr=matrix_lr, weight_decay=0.01),
            torch.optim.AdamW(others, lr=other_lr, betas=(0.9, 0.98), weight_decay=0.0),
        )
        super().__init__([part.param_groups[0] for part in self.parts], defaults={})
        self._share()

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update all parameters; `closure` as in every optimizer of torch."""
        muon, adamw = self.parts
        loss = muon.step(closure)
        adamw.step()
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was called."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """What the parts read and write is this object's: a schedule sets its rates, a checkpoint holds its state."""
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state


def schedule(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """The learning rates of a run of that many steps; see :func:`rate`."""
    return LambdaLR(optimizer, lambda number: rate(number, steps))


def rate(number: int, steps: int) -> float:
    """The learning rate of step `number`, as a share of the highest.

    All of it until the model has found the question (some hundred steps), then so little that it can learn its sums, at
    last none; and once more from a tenth to none, for the sums.

    Example:
        >>> [round(rate(number, 3900), 3) for number in (0, 99, 500, 3599, 3600, 3900)]
        [0.01, 0.812, 0.431, 0.0, 0.1, 0.0]
    """
    first = steps * 12 // 13
    if number < first:
        return min((number + 1) / WARMUP_STEPS, (1 - number / first) / (1 + number / HIGH_STEPS))
    return AGAIN * (1 - (number - first) / (steps - first))
