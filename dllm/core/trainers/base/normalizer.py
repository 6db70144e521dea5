"""The normaliser Z of the loss, over a whole optimizer step: all its forwards and all ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dllm.core.trainers.base.objective import Objective
from dllm.core.trainers.batches import CORRUPTION, IGNORE
from dllm.core.trainers.interruption import StopOnSignal


class WholeStepNormalizer(Objective):
    """A Trainer whose loss is divided by one normaliser Z for the whole optimizer step.

    So k forwards of n samples make the same step as one forward of k n samples. transformers' own count cannot be
    used: 4.57 counts all labels, 5 counts those of a causal model, and neither counts samples. Here the batches of a
    step are counted when they are fetched, the counts are summed over ranks, and transformers is told not to divide
    again. The same all-reduce tells every rank whether one of them was asked to stop.
    """

    loss_is_scaled_for_ga = True  # transformers 5: training_step divides by nothing

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.model_accepts_loss_kwargs = True  # transformers 4: training_step divides by nothing
        self.stop = StopOnSignal()
        self.add_callback(self.stop)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """The batches of one optimizer step, and Z over all of them and all ranks, int64 of shape `normalizers`."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if not self._loss_is_replaced():
            batches = [self._ensure_corrupted(batch, "train") for batch in batches]
        normalizer = torch.zeros(self.normalizers, dtype=torch.int64, device=device)
        for batch in batches:
            normalizer += self._normalizer(batch).to(device)
        counts = torch.cat([normalizer.flatten(), normalizer.new_tensor([bool(self.stop.asked)])])
        *normalizer, asked = self.accelerator.reduce(counts, reduction="sum")
        self.stop.agreed(asked)
        return batches, torch.stack(normalizer).view(self.normalizers)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Train on one batch, as transformers' Trainer.

        The loss of a replaced `compute_loss` is divided by the number of forwards in the step, unless it calls the
        original with `num_items_in_batch`.
        """
        if self._loss_is_replaced():
            self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = False
        return super().training_step(model, inputs, num_items_in_batch)

    def _normalizer(self, batch: Mapping[str, Any]) -> Tensor:
        maskable = batch[CORRUPTION]["maskable"] if CORRUPTION in batch else (batch["labels"] != IGNORE).sum(1)
        return maskable.sum() if self.args.loss_norm_type == "token" else maskable.new_tensor(len(maskable))

    def _normalized_weight(self, weight: Tensor, sample: Tensor, maskable: Tensor) -> Tensor:
        """c w of each masked token, float32 [N].

        Args:
            weight: w of each masked token, float32 [N].
            sample: the sample that each belongs to, int64 [N].
            maskable: each sample's number of tokens that have a label, int64 [B].
        """
        return weight / maskable[sample] if self.args.loss_norm_type == "sequence" else weight

    def _loss_terms(self, nll: Tensor, maskable: Tensor) -> tuple[Tensor, Tensor]:
        if self.args.loss_norm_type == "batch":
            return nll, torch.ones_like(nll)
        per_token = nll / maskable.clamp(min=1)
        return per_token, maskable if self.args.loss_norm_type == "token" else torch.ones_like(nll)
