"""A callback that keeps torchmetrics metrics for training and evaluation separately, and logs them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torchmetrics
import transformers

from dllm.startup import print_main


class OnEvaluateMetricsCallback(transformers.TrainerCallback):
    """Metrics of each split, logged and reset after every evaluation, as `nll` (training) and `eval_nll`.

    `MDLMTrainer.meter` is one, but not a callback of that trainer, which logs its values in its own entries. Another
    Trainer registers one by `trainer.add_callback` and updates it in its `compute_loss`.

    Args:
        trainer: gives the device, by its accelerator, and logs.
        splits: names of the splits; "train" is logged without a prefix.
        metrics: a mapping from names to metrics, or a MetricCollection. Each split has a copy.

    Raises:
        TypeError: `metrics` is neither.

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
            # torchmetrics would merge metrics that happen to agree after their first update
            metrics = torchmetrics.MetricCollection(dict(metrics), compute_groups=False)
        if not isinstance(metrics, torchmetrics.MetricCollection):
            raise TypeError(f"metrics must be metrics by name, or a MetricCollection, got {type(metrics).__name__}")
        self.trainer, self.splits = trainer, tuple(splits)
        self._metrics = {split: copy.deepcopy(metrics).to(trainer.accelerator.device) for split in self.splits}
        self.reset()

    def update(self, split: str, *args: Any, **kwargs: Any) -> None:
        """Add a batch. Takes the arguments of the metrics' own `update`; does not wait for the device."""
        with torch.no_grad():
            self._metrics[split].update(*args, **kwargs)

    def finalize(self, split: str) -> dict[str, float]:
        """The values over all ranks, then reset; {} if there was no update. Every rank must call this."""
        metrics = self._metrics[split]
        if not any(metric.update_called for metric in metrics.values()):
            return {}
        found = {name: float(value) for name, value in metrics.compute().items() if value is not None}
        metrics.reset()
        return found

    def reset(self, *splits: str) -> None:
        """Reset the metrics of these splits; of all if none is named."""
        for split in splits or self.splits:
            self._metrics[split].reset()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the values of all splits and print them in the first process."""
        logs = {
            name if split == "train" else f"{split}_{name}": value
            for split in self.splits
            for name, value in self.finalize(split).items()
        }
        if logs:
            self.trainer.log(logs)
            print_main(f"[step {state.global_step}] " + " ".join(f"{name}={value:.6f}" for name, value in logs.items()))
