"""Moments of a training run as methods of the trainer, which each class extends with `super()`."""

from __future__ import annotations

from typing import Any

import transformers


class HookedTrainer(transformers.Trainer):
    """transformers' Trainer that calls methods of its own where transformers calls its callbacks."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.add_callback(_Hooks(self))

    def _on_train_begin(self) -> None:
        """Before the first step of `train`: the weights are loaded, nothing has been trained."""

    def _on_epoch_begin(self, dataloader: Any) -> None:
        """Before the iterator of an epoch is made. A resumed run begins in the epoch in which it stopped."""

    def _on_optimizer_step(self) -> None:
        """After the optimizer has changed the weights."""


class _Hooks(transformers.TrainerCallback):
    def __init__(self, trainer: HookedTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._on_train_begin()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any, **kwargs: Any) -> None:
        self.trainer._on_epoch_begin(train_dataloader)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._on_optimizer_step()
