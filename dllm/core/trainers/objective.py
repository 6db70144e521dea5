"""A diffusion objective, as its trainer sees it: how samples are corrupted, and the loss of a corrupted batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from dllm.core.trainers.batches import CORRUPTION
from dllm.core.trainers.collator import MDLMCollator
from dllm.core.trainers.config import MDLMConfig
from dllm.core.trainers.hooks import HookedTrainer

Split = Literal["train", "eval"]


class Objective(HookedTrainer, ABC):
    """A Trainer with a diffusion objective. `compute_loss` is the same for all of them.

    An objective is two methods: `_collator`, which makes the collator that corrupts samples, and `_weighted_loss`, the
    loss of a corrupted batch. :class:`~dllm.core.trainers.base.DiffusionTrainer` has the other abstract methods.
    """

    args: MDLMConfig

    @abstractmethod
    def _collator(self) -> MDLMCollator:
        """A new collator of corrupted batches, on top of `data_collator`."""

    @abstractmethod
    def _weighted_loss(self, model: nn.Module, inputs: Mapping[str, Any], scale: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over samples of c w CE of a corrupted batch times `scale`, and each sample's sum of w CE without c,
        float32 [B]."""

    @abstractmethod
    def _corrupted(self, inputs: Mapping[str, Any], split: Split) -> Mapping[str, Any]:
        """A batch of x_0 as one of x_t, on the device; one that is corrupted already as it is."""

    @abstractmethod
    def _normalizer(self, batch: Mapping[str, Any]) -> Tensor:
        """Z of one batch, int64 []."""

    @abstractmethod
    def _loss_terms(self, nll: Tensor, maskable: Tensor) -> tuple[Tensor, Tensor]:
        """Values and weights [B], whose weighted mean over all samples of a data set is the loss of the data set.

        Args:
            nll: each sample's sum of w CE, float32 [B].
            maskable: its tokens that have a label, int64 [B].
        """

    @abstractmethod
    def _count(self, split: Split, corruption: Mapping[str, Tensor], nll: Tensor) -> None:
        """Count a batch whose loss has been computed: what was masked of it, and each sample's sum of w CE."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """This batch's part of the loss, float32 [], times the number of ranks, whose mean DDP and FSDP take.

        Args:
            model: wrapped or not.
            inputs: a batch of this trainer's data loaders; or one with `input_ids` and `labels`, which is corrupted.
            return_outputs: also return {"nll": float32 [B]}, each sample's sum of w CE.
            num_items_in_batch: Z; that of this batch alone if not given.
        """
        split: Split = "train" if model.training else "eval"
        inputs = self._corrupted(inputs, split)
        if self._has_own_loss():
            self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = num_items_in_batch is not None
        ranks = 1 if num_items_in_batch is None else self.args.world_size
        normalizer = self._normalizer(inputs) if num_items_in_batch is None else num_items_in_batch
        loss, nll = self._weighted_loss(model, inputs, ranks / normalizer.clamp(min=1).float())
        self._count(split, inputs[CORRUPTION], nll)
        return (loss, {"nll": nll}) if return_outputs else loss

    def _model_inputs(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the model, wrapped or not, is called with."""
        return {name: value for name, value in inputs.items() if name != CORRUPTION}

    def _has_own_loss(self) -> bool:
        """Whether a subclass, or somebody who set it on the instance, has replaced `compute_loss`."""
        return getattr(self.compute_loss, "__func__", None) is not Objective.compute_loss

    def _replaced(self) -> list[str]:
        """The names of the methods of the loss that have been replaced."""
        return ["compute_loss"] if self._has_own_loss() else []
