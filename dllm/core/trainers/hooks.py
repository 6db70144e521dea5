"""The moments of a run at which an MDLMTrainer has something to do."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import transformers

if TYPE_CHECKING:
    from dllm.core.trainers.mdlm import MDLMConfig, MDLMTrainer

_log = logging.getLogger("dllm")


class Hooks(transformers.TrainerCallback):
    """The moments of a run at which the trainer has something to do."""

    def __init__(self, trainer: MDLMTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: MDLMConfig, state: Any, control: Any, **kwargs: Any) -> None:
        self.epoch: int | None = None
        self.trainer._begin()

    def on_epoch_begin(self, args: MDLMConfig, state: Any, control: Any, train_dataloader: Any, **kwargs: Any) -> None:
        """Before the epoch's iterator is made. A resumed run begins in the epoch that it was in."""
        if self.epoch is None:
            self.epoch = state.global_step // _steps_per_epoch(train_dataloader, args) - 1
            if state.global_step and not has_length(train_dataloader):
                _log.warning(
                    "resumed on a data set without length: what follows is the uninterrupted run only if that was in "
                    "its first pass over the data"
                )
        self.epoch += 1
        self.trainer._noise[True].epoch = self.epoch
        self.trainer._order.manual_seed((args.seed if args.data_seed is None else args.data_seed) + self.epoch)

    def on_optimizer_step(self, args: MDLMConfig, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.averaged is not None:
            self.trainer.averaged.update()


def _steps_per_epoch(dataloader: Any, args: MDLMConfig) -> int:
    """Optimizer steps of an epoch; of a data set without length all steps are one, as transformers sees it."""
    if not has_length(dataloader):
        return max(1, args.max_steps)
    return max(1, -(-len(dataloader) // args.gradient_accumulation_steps))


def has_length(data: Any) -> bool:
    """Whether a data set, or a loader of one, knows how long it is.

    Example:
        >>> has_length([1, 2]), has_length(iter([1, 2]))
        (True, False)
    """
    try:
        return len(data) >= 0
    except TypeError:
        return False
