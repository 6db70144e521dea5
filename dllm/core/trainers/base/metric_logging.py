"""Metrics that a run logs: loss, NLL and perplexity in training and evaluation, tokens per second, MFU, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torchmetrics
from torch import Tensor, nn

from dllm.core.trainers.base.objective import Objective, Split
from dllm.core.trainers.batches import CORRUPTION
from dllm.core.trainers.utils.curve import LOSSES, draw_curve
from dllm.core.trainers.utils.meters import OnEvaluateMetricsCallback
from dllm.core.trainers.utils.metrics import MeanMetric, NLLMetric, PPLMetric
from dllm.core.trainers.utils.throughput import Flops, Throughput, matmul_rate, peak_memory


class MetricLogging(Objective):
    """A Trainer that logs more than transformers does:

    - `nll`: the sum of w CE over masked tokens, divided by the number of tokens that have a label, since the last log
      entry; `ppl` = exp(nll). In evaluation `eval_nll` and `eval_ppl`, over the whole data set;
    - `tokens_per_second`, `masked_tokens_per_second`: of all ranks; evaluation and saving do not count;
    - `mfu`: useful FLOP/s divided by those of a large matrix product, measured on this device;
    - `peak_memory_gib`.

    `eval_loss` is the loss of the whole data set under the run's normalisation, a mean over tokens or samples and never
    over batches. At the end of training `training_curve.png` is drawn in `output_dir`.
    """

    curves: ClassVar[Sequence[Sequence[str]]] = LOSSES  # panels of the training curve
    predicted: ClassVar[str] = "masked_tokens"  # what the tokens that meet the head are called

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        device = self.args.device
        self.throughput = Throughput(device, self.predicted)
        self.meter = OnEvaluateMetricsCallback(self, metrics=self._metrics(device))

    def _metrics(self, device: torch.device) -> dict[str, torchmetrics.Metric]:
        """The metrics by name. Each is updated with values per token, and with numbers of tokens as their weights."""
        return {"nll": NLLMetric(device), "ppl": PPLMetric(device)}

    def _on_train_begin(self) -> None:
        super()._on_train_begin()
        self.meter.reset("train")
        self.throughput = Throughput(self.args.device, self.predicted)
        half = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
        self._flops, self._peak_flops = Flops(self.model), matmul_rate(self.args.device, half or torch.float32)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as transformers' Trainer does, then draw the training curve, also of an interrupted run."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.is_world_process_zero():
                draw_curve(self.state.log_history, Path(self.args.output_dir) / "training_curve.png", self.curves)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], Tensor]:
        """The batches of one optimizer step, and Z over all of them and all ranks, int64 []."""
        self.throughput.start()
        return super().get_batch_samples(*args, **kwargs)

    def _record_batch(self, split: Split, corruption: Mapping[str, Tensor], nll: Tensor) -> None:
        maskable = corruption["maskable"]
        if split == "train" or self._loss_is_replaced():  # else prediction_step records them, without repeated samples
            self.meter.update(split, value=nll / maskable.clamp(min=1), weight=maskable)
        if split == "train":
            self.throughput.update(corruption["lengths"], len(corruption["rows"]))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as transformers' Trainer does, with this trainer's metrics added to the entries of training."""
        if "loss" in logs:
            logs |= self.meter.finalize("train")
            memory = peak_memory(self.args.device)
            if memory is not None:
                logs["peak_memory_gib"] = memory
            logs |= self.throughput.rates(self._flops, self._peak_flops)
        super().log(logs, start_time)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.throughput.paused():
            super()._save_checkpoint(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as transformers' Trainer does: loss, NLL and perplexity of the whole data set."""
        with self.throughput.paused():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluate a data loader, as transformers' Trainer; means are over samples or tokens, never over batches."""
        self._eval_loss = self._new_eval_loss()
        self.meter.reset("eval")
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        found = self.meter.finalize("eval")
        if self._eval_loss.update_called:
            found["loss"] = self._eval_loss.compute()
        output.metrics.update({f"{metric_key_prefix}_{name}": float(value) for name, value in found.items()})
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The loss of one evaluation batch. No logits are returned, as none of all positions are computed."""
        inputs = self._prepare_inputs(inputs)
        if not self._loss_is_replaced():
            inputs = self._ensure_corrupted(inputs, "eval")
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if self._loss_is_replaced():
            self._eval_loss.update(loss, weight=len(inputs["input_ids"]))
            return loss.detach(), None, None
        self._record_evaluation(inputs[CORRUPTION], outputs["nll"])
        return loss.detach(), None, None

    def _new_eval_loss(self) -> MeanMetric:
        """The metric of the loss of a whole data set."""
        return MeanMetric(self.args.device)

    def _record_evaluation(self, corruption: Mapping[str, Tensor], nll: Tensor) -> None:
        """Record the metrics of an evaluation batch, without the samples that were repeated to fill the last batch on
        some ranks. Arguments are those of `_record_batch`."""
        nll, maskable = self.accelerator.gather_for_metrics((nll, corruption["maskable"]))
        self.meter.update("eval", value=nll / maskable.clamp(min=1), weight=maskable)
        self._eval_loss.update(*self._loss_terms(nll, maskable))
