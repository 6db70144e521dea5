"""Checkpoints that are complete or removed, hold averaged weights beside the trained ones, and resume exactly."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from dllm.core.trainers.base.ema import FILE as AVERAGE_FILE
from dllm.core.trainers.base.ema import AveragedWeights
from dllm.core.trainers.base.objective import Objective
from dllm.core.trainers.resume import checkpoint_to_resume, complete_or_removed


class Checkpoints(Objective):
    """A Trainer that resumes from complete checkpoints only, and keeps averaged weights with `ema_decay`.

    Evaluation and a final `save_model` use the average; checkpoints hold both.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.averaged: AveragedWeights | None = None
        self._resumed_from: str | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as transformers' Trainer does.

        A resumed run repeats the uninterrupted one exactly. On a data set without length this holds in the first pass
        only, because the length of a pass is not known.
        """
        self._resumed_from = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        if self._resumed_from and self.args.ema_decay is not None:
            if not (Path(self._resumed_from) / AVERAGE_FILE).exists():
                raise ValueError(f"{self._resumed_from} holds no averaged weights: leave ema_decay unset")
        return super().train(self._resumed_from, *args, **kwargs)

    def _on_train_begin(self) -> None:
        super()._on_train_begin()
        if self.args.ema_decay is not None:
            self.averaged = AveragedWeights(self.model, self.args.ema_decay)
            if self._resumed_from:
                self.averaged.load(self._resumed_from)

    def _on_optimizer_step(self) -> None:
        super()._on_optimizer_step()
        if self.averaged is not None:
            self.averaged.update()

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as transformers' Trainer does, with the averaged weights where they are kept."""
        with nullcontext() if self.averaged is None else self.averaged.applied():
            return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights; with `ema_decay` the averaged ones, and in a checkpoint both."""
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
        with complete_or_removed(folder) if self.args.should_save else nullcontext():
            super()._save_checkpoint(model, trial, **kwargs)
