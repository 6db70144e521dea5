"""The optimizer of the bundled model: Muon for the matrices of the layers, AdamW for everything else, on one schedule.

With Muon (Jordan et al. 2024) the model attends to the question after 200 steps, with AdamW after many more. Both are
invariant to the scale of the loss: Muon orthogonalizes every update, AdamW divides by the size of the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

WARMUP_STEPS, DECAY_STEPS, RESTART = 100, 500, 0.1


class MuonAdamW(torch.optim.Optimizer):
    """Muon and AdamW as one optimizer, with a parameter group and a learning rate for each.

    Args:
        model: a transformer; Muon updates the matrices in its `layers`, AdamW embeddings, head, norms and biases.
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
        self._share_state()

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update all parameters; `closure` as in `torch.optim.Optimizer.step`."""
        muon, adamw = self.parts
        loss = muon.step(closure)
        adamw.step()
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state saved by `state_dict`."""
        super().load_state_dict(state_dict)
        self._share_state()

    def _share_state(self) -> None:
        """Let both parts use this object's groups and state, so that schedules and checkpoints reach them."""
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state


def schedule(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """The learning-rate schedule of a run of `steps` steps; see :func:`rate`."""
    return LambdaLR(optimizer, lambda number: rate(number, steps))


def rate(number: int, steps: int) -> float:
    """The learning rate of step `number`, as a share of the maximum.

    In the first 12/13 of the run: linear warm-up over WARMUP_STEPS, then (1 - number / first) / (1 + number /
    DECAY_STEPS), which is high until the model attends to the question and low while it learns arithmetic. In the last
    1/13: linear from RESTART to 0, which improves the arithmetic.

    Example:
        >>> [round(rate(number, 3900), 3) for number in (0, 99, 500, 3599, 3600, 3900)]
        [0.01, 0.812, 0.431, 0.0, 0.1, 0.0]
    """
    first = steps * 12 // 13
    if number < first:
        return min((number + 1) / WARMUP_STEPS, (1 - number / first) / (1 + number / DECAY_STEPS))
    return RESTART * (1 - (number - first) / (steps - first))
