"""Callbacks of a training run as methods of the trainer, which subclasses extend by `super()`."""

from __future__ import annotations

from typing import Any

import transformers


class HookedTrainer(transformers.Trainer):
    """transformers' Trainer that calls its own methods where transformers calls callbacks."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.add_callback(_Hooks(self))

    def _on_train_begin(self) -> None:
        """Called once the weights are loaded, before the first step."""

    def _on_epoch_begin(self, dataloader: Any) -> None:
        """Called before an epoch's iterator is made. A resumed run begins in the epoch in which it stopped."""

    def _on_optimizer_step(self) -> None:
        """Called after the optimizer has changed the weights."""


class _Hooks(transformers.TrainerCallback):
    def __init__(self, trainer: HookedTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._on_train_begin()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any, **kwargs: Any) -> None:
        self.trainer._on_epoch_begin(train_dataloader)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._on_optimizer_step()
