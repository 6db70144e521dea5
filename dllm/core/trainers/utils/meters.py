"""Metrics of torchmetrics that are kept for training and evaluation apart, and logged."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torchmetrics
import transformers

from dllm.startup import print_main


class OnEvaluateMetricsCallback(transformers.TrainerCallback):
    """Metrics for each split, which are logged after every evaluation and begin again: `nll` of training, `eval_nll`.

    `MDLMTrainer.meter` is one. It is not among that trainer's callbacks: its values stand in the trainer's own entries.
    Any other Trainer takes one by `trainer.add_callback` and feeds it in its `compute_loss`.

    Args:
        trainer: whose accelerator says where the metrics live, and who logs.
        splits: the metrics are kept for each of them; "train" is logged without a prefix.
        metrics: the metrics of one split by name, or torchmetrics' collection of them. They are copied.

    Raises:
        TypeError: metrics that are neither.

    Example:
        >>> from types import SimpleNamespace
        >>> from dllm.core.trainers.utils import NLLMetric
        >>> trainer = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"))
        >>> meter = OnEvaluateMetricsCallback(trainer, metrics={"nll": NLLMetric()})
        >>> meter.update("train", value=torch.tensor([1.0, 3.0]), weight=torch.tensor([1, 1]))
        >>> meter.finalize("train"), meter.finalize("eval")
        ({'nll': 2.0}, {})
    """

    def __init__(
        self,
        trainer: transformers.Trainer,
        splits: Iterable[str] = ("train", "eval"),
        metrics: torchmetrics.MetricCollection | Mapping[str, torchmetrics.Metric] | None = None,
    ):
        if isinstance(metrics, Mapping) and not isinstance(metrics, torchmetrics.MetricCollection):
            metrics = torchmetrics.MetricCollection(dict(metrics))
        if not isinstance(metrics, torchmetrics.MetricCollection):
            raise TypeError(f"metrics must be metrics by name, or a MetricCollection, got {type(metrics).__name__}")
        self.trainer, self.splits = trainer, tuple(splits)
        self._metrics = {split: copy.deepcopy(metrics).to(trainer.accelerator.device) for split in self.splits}
        self.reset()

    def update(self, split: str, *args: Any, **kwargs: Any) -> None:
        """Take in a batch: what the metrics' own `update` takes. Nothing is read back from the device."""
        with torch.no_grad():
            self._metrics[split].update(*args, **kwargs)

    def finalize(self, split: str) -> dict[str, float]:
        """The values of all ranks, which then begin again; none if there was no update. Every rank has to call it."""
        metrics = self._metrics[split]
        if not any(metric.update_called for metric in metrics.values()):
            return {}
        found = {name: float(value) for name, value in metrics.compute().items()}
        metrics.reset()
        return found

    def reset(self, *splits: str) -> None:
        """Forget what was seen of these splits, of all if none is named."""
        for split in splits or self.splits:
            self._metrics[split].reset()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the values of all splits, and print them in the first process."""
        logs = {
            name if split == "train" else f"{split}_{name}": value
            for split in self.splits
            for name, value in self.finalize(split).items()
        }
        if logs:
            self.trainer.log(logs)
            print_main(f"[step {state.global_step}] " + " ".join(f"{name}={value:.6f}" for name, value in logs.items()))
