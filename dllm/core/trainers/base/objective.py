"""The interface of a diffusion objective: how samples are corrupted, and the loss of a corrupted batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from dllm.core.trainers.base.hooks import HookedTrainer
from dllm.core.trainers.batches import CORRUPTION
from dllm.core.trainers.collator import MDLMCollator
from dllm.core.trainers.config import MDLMConfig

Split = Literal["train", "eval"]


class Objective(HookedTrainer, ABC):
    """A Trainer with a diffusion objective; `compute_loss` is shared by all objectives.

    An objective is two methods: `_make_collator` makes the collator that corrupts samples, and `_weighted_loss` is the
    loss of a corrupted batch. The other abstract methods are implemented by the classes that
    :class:`~dllm.core.trainers.base.trainer.DiffusionTrainer` puts together.
    """

    args: MDLMConfig
    normalizers: ClassVar[tuple[int, ...]] = ()  # the shape of Z: one number, or one for each term of the loss

    @abstractmethod
    def _make_collator(self) -> MDLMCollator:
        """A new collator that pads samples by `data_collator` and corrupts the batch."""

    @abstractmethod
    def _weighted_loss(self, model: nn.Module, inputs: Mapping[str, Any], scale: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a corrupted batch.

        Returns:
            `scale` times the sum of c w CE over all masked tokens; and each sample's sum of w CE, float32 [B].
        """

    @abstractmethod
    def _ensure_corrupted(self, inputs: Mapping[str, Any], split: Split) -> Mapping[str, Any]:
        """The batch corrupted, on the device; unchanged if it is corrupted already."""

    @abstractmethod
    def _normalizer(self, batch: Mapping[str, Any]) -> Tensor:
        """Z of one batch, int64 of shape `normalizers`."""

    @abstractmethod
    def _loss_terms(self, nll: Tensor, maskable: Tensor) -> tuple[Tensor, Tensor]:
        """Values and weights [B]; their weighted mean over all samples of a data set is the loss of the data set.

        Args:
            nll: each sample's sum of w CE, float32 [B].
            maskable: each sample's number of tokens that have a label, int64 [B].
        """

    @abstractmethod
    def _record_batch(self, split: Split, corruption: Mapping[str, Tensor], nll: Tensor) -> None:
        """Record the metrics of a batch.

        Args:
            split: the metrics to add to.
            corruption: the batch's entry "corruption".
            nll: each sample's sum of w CE, float32 [B].
        """

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """This batch's part of the loss, float32 [], times the number of ranks, because DDP and FSDP take their mean.

        Args:
            model: wrapped or not.
            inputs: a batch of this trainer's data loaders; or one with `input_ids` and `labels`, which is corrupted
                here.
            return_outputs: also return {"nll": float32 [B]}, each sample's sum of w CE.
            num_items_in_batch: the normaliser Z of the optimizer step; that of this batch alone if not given.
        """
        split: Split = "train" if model.training else "eval"
        inputs = self._ensure_corrupted(inputs, split)
        if self._loss_is_replaced():
            self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = num_items_in_batch is not None
        ranks = 1 if num_items_in_batch is None else self.args.world_size
        normalizer = self._normalizer(inputs) if num_items_in_batch is None else num_items_in_batch
        loss, nll = self._weighted_loss(model, inputs, ranks / normalizer.clamp(min=1).float())
        self._record_batch(split, inputs[CORRUPTION], nll)
        return (loss, {"nll": nll}) if return_outputs else loss

    def _model_inputs(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of the model, which may be wrapped."""
        return {name: value for name, value in inputs.items() if name != CORRUPTION}

    def _loss_is_replaced(self) -> bool:
        """Whether `compute_loss` has been replaced, by a subclass or on the instance."""
        return getattr(self.compute_loss, "__func__", None) is not Objective.compute_loss

    def _replaced_methods(self) -> list[str]:
        """The names of the methods of the loss that have been replaced."""
        return ["compute_loss"] if self._loss_is_replaced() else []
