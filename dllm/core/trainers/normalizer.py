"""The normaliser Z of the loss, over a whole optimizer step: all its forwards and all ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dllm.core.trainers.batches import CORRUPTION, IGNORE
from dllm.core.trainers.interruption import StopOnSignal
from dllm.core.trainers.objective import Objective


class WholeStepNormalizer(Objective):
    """A Trainer whose loss is divided once, by the Z of the whole optimizer step: k forwards of n samples are the same
    step as one of k n.

    transformers' own count does not serve: 4.57 counts all labels, 5 those of a causal model, and neither counts
    samples. So batches are counted here when a step's batches are fetched, the counts are added up over ranks, and
    transformers is told not to divide again. The same sum tells every rank whether one of them was asked to stop.
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
        """The batches of one optimizer step, and Z over all of them and all ranks, int64 []."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if not self._has_own_loss():
            batches = [self._corrupted(batch, "train") for batch in batches]
        normalizer = torch.zeros((), dtype=torch.int64, device=device)
        for batch in batches:
            normalizer += self._normalizer(batch).to(device)
        counts = torch.stack([normalizer, torch.full_like(normalizer, bool(self.stop.asked))])
        normalizer, asked = self.accelerator.reduce(counts, reduction="sum")
        self.stop.agreed(asked)
        return batches, normalizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """As transformers' Trainer. The loss of a replaced `compute_loss` is divided by the number of the step's
        forwards, unless it calls this library's with `num_items_in_batch`."""
        if self._has_own_loss():
            self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = False
        return super().training_step(model, inputs, num_items_in_batch)

    def _normalizer(self, batch: Mapping[str, Any]) -> Tensor:
        maskable = batch[CORRUPTION]["maskable"] if CORRUPTION in batch else (batch["labels"] != IGNORE).sum(1)
        return maskable.sum() if self.args.loss_norm_type == "token" else maskable.new_tensor(len(maskable))

    def _normalized_weight(self, weight: Tensor, sample: Tensor, maskable: Tensor) -> Tensor:
        """c w of masked tokens: `weight` w [N] of each, its sample [N], and the maskable tokens of each sample [B]."""
        return weight / maskable[sample] if self.args.loss_norm_type == "sequence" else weight

    def _loss_terms(self, nll: Tensor, maskable: Tensor) -> tuple[Tensor, Tensor]:
        if self.args.loss_norm_type == "batch":
            return nll, torch.ones_like(nll)
        per_token = nll / maskable.clamp(min=1)
        return per_token, maskable if self.args.loss_norm_type == "token" else torch.ones_like(nll)
