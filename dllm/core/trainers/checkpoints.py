"""Checkpoints: written whole or not at all, with averaged weights beside the trained ones, and resumed exactly."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from dllm.core.trainers import ema
from dllm.core.trainers.objective import Objective
from dllm.core.trainers.resume import checkpoint_to_resume, whole_checkpoint


class Checkpoints(Objective):
    """A Trainer that resumes from whole checkpoints only, and with `ema_decay` keeps averaged weights: evaluation and a
    final `save_model` use the average, checkpoints hold both."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.averaged: ema.AveragedWeights | None = None
        self._resumed_from: str | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' Trainer; resumes from whole checkpoints only, and follows the uninterrupted run exactly
        (on a data set without length only in its first pass: how long the passes were is not known)."""
        self._resumed_from = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        if self._resumed_from and self.args.ema_decay is not None:
            if not (Path(self._resumed_from) / ema.FILE).exists():
                raise ValueError(f"{self._resumed_from} holds no averaged weights: leave ema_decay unset")
        return super().train(self._resumed_from, *args, **kwargs)

    def _on_train_begin(self) -> None:
        super()._on_train_begin()
        if self.args.ema_decay is not None:
            self.averaged = ema.AveragedWeights(self.model, self.args.ema_decay)
            if self._resumed_from:
                self.averaged.load(self._resumed_from)

    def _on_optimizer_step(self) -> None:
        super()._on_optimizer_step()
        if self.averaged is not None:
            self.averaged.update()

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' Trainer, of the averaged weights where they are kept."""
        with nullcontext() if self.averaged is None else self.averaged.applied():
            return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights, in checkpoints together with their average; else their average, if one is kept."""
        if self.averaged is None:
            super().save_model(output_dir, _internal_call)
        elif not _internal_call:
            with self.averaged.applied():
                super().save_model(output_dir, _internal_call)
        else:
            super().save_model(output_dir, _internal_call)
            if self.args.should_save:
                self.averaged.save(output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None, **kwargs: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with whole_checkpoint(folder) if self.args.should_save else nullcontext():
            super()._save_checkpoint(model, trial, **kwargs)
