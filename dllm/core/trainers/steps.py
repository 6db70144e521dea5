"""The steps of the loss that a subclass of a trainer may replace, under the names that dLLM 0.1 gave them."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm.core.schedulers import BaseAlphaScheduler
from dllm.core.trainers.batches import CORRUPTION
from dllm.core.trainers.collator import MDLMCollator
from dllm.core.trainers.loaders import CorruptingLoaders
from dllm.core.trainers.normalizer import WholeStepNormalizer
from dllm.core.trainers.objective import Split
from dllm.fast.training.loss import masked_loss


class ReplaceableSteps(CorruptingLoaders, WholeStepNormalizer):
    """What of :class:`~dllm.core.trainers.mdlm.MDLMTrainer` a subclass may replace, with 0.1's names and signatures.

    As long as nothing is replaced none of this runs: masks are drawn in the data loader's processes, and the loss is
    that of :func:`dllm.fast.training.loss.masked_loss`. What replaces a step makes the batches come as they were
    collated, with `labels`; they are corrupted in the training process. The objective, its normaliser over the whole
    optimizer step and the masks stay what they are.
    """

    scheduler: BaseAlphaScheduler

    time_epsilon = property(attrgetter("args.time_epsilon"), doc="The smallest diffusion time.")
    loss_weight_type = property(attrgetter("args.loss_weight_type"), doc="How masked tokens are weighted.")
    loss_norm_type = property(attrgetter("args.loss_norm_type"), doc="What the loss is a mean over.")
    right_shift_logits = property(attrgetter("args.right_shift_logits"), doc="Whether p predicts the token at p + 1.")

    def _preprocess_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch x_0 that is corrupted: `input_ids` and `labels` [B, L], perhaps `attention_mask`."""
        return inputs

    def _postprocess_outputs(self, outputs: Any) -> Any:
        """What the model has returned, its `.logits` [B, L, V] at p those that predict the token at p."""
        if self.right_shift_logits:
            outputs.logits = torch.cat([outputs.logits[:, :1], outputs.logits[:, :-1]], dim=1)
        return outputs

    def _compute_loss_weights(self, t: Tensor, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Weights of tokens, of the shape of `input_ids` [B, L] or one that broadcasts to it.

        Args:
            t: the times, float32 [B], or [B, L] where each block has one of its own.
            inputs: the batch x_0: `input_ids`, `labels`, perhaps `attention_mask`.
            args, kwargs: `masked_mask`, bool [B, L], the tokens that are masked.
        """
        weight = torch.ones_like(t) if self.loss_weight_type == "uniform" else self.scheduler.weight(t)
        return (weight if weight.dim() == 2 else weight[:, None]).expand(inputs["input_ids"].shape)

    def _replaced(self) -> list[str]:
        return replaced_steps(self) + super()._replaced()

    def _corrupted(self, inputs: Mapping[str, Any], split: Split) -> Mapping[str, Any]:
        if CORRUPTION in inputs:
            return inputs
        return super()._corrupted(self._preprocess_inputs(dict(inputs)), split)

    def _corrupt(self, collator: MDLMCollator, batch: dict[str, Any]) -> dict[str, Any]:
        return collator.corrupt(batch, keep_clean=bool(replaced_steps(self)))

    def _loss_of_replaced_steps(
        self, model: nn.Module, inputs: Mapping[str, Any], scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`_weighted_loss` by the steps of a subclass, of a batch that was corrupted with `keep_clean=True`."""
        chosen = inputs[CORRUPTION]
        tokens = masked_tokens(self, chosen)
        weight = self._normalized_weight(tokens.weight, tokens.row, chosen["maskable"])
        loss, nll = loss_of(self, model, self._model_inputs(model, inputs), tokens, weight * scale)
        weighted = (tokens.weight * nll).detach()
        return loss, nll.new_zeros(len(chosen["maskable"])).index_add_(0, tokens.row, weighted)


_OWN = {
    name: getattr(ReplaceableSteps, name)
    for name in ("_preprocess_inputs", "_postprocess_outputs", "_compute_loss_weights")
}


def replaced_steps(trainer: Any) -> list[str]:
    """The names of the steps that a subclass, or somebody who set them on the instance, has replaced."""
    found = {name: getattr(trainer, name, own) for name, own in _OWN.items()}
    return [name for name, step in found.items() if getattr(step, "__func__", step) is not _OWN[name]]


class Masked(NamedTuple):
    """The masked tokens of a batch, N of them.

    row, position: int64 [N], where they are in [B, L].
    targets: int64 [N], which they are.
    weight: float32 [N], what `_compute_loss_weights` gives them.
    """

    row: Tensor
    position: Tensor
    targets: Tensor
    weight: Tensor


def masked_tokens(trainer: ReplaceableSteps, chosen: Mapping[str, Tensor]) -> Masked:
    """The masked tokens, with the weights of the trainer's step.

    Args:
        trainer: whose step it is.
        chosen: what :meth:`~dllm.core.trainers.collator.MDLMCollator.corrupt` notes with `keep_clean=True`.

    Raises:
        TypeError, ValueError: weights that are no tensor, or do not broadcast to [B, L].
    """
    masked = chosen["masked"]
    clean = {name: chosen[name] for name in ("input_ids", "labels", "attention_mask") if name in chosen}
    weights = trainer._compute_loss_weights(t=chosen["times"], inputs=clean, masked_mask=masked)
    if not isinstance(weights, Tensor):
        raise TypeError(f"_compute_loss_weights must return a tensor, got {type(weights).__name__}")
    try:
        weights = weights.expand_as(masked)
    except RuntimeError:
        raise ValueError(
            f"_compute_loss_weights must return weights of the shape {list(masked.shape)}, got {list(weights.shape)}"
        ) from None
    row, position = masked.nonzero(as_tuple=True)
    return Masked(row, position, clean["input_ids"][row, position], weights[row, position].float())


def loss_of(
    trainer: ReplaceableSteps, model: nn.Module, inputs: Mapping[str, Any], tokens: Masked, row_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum of row_weight x nll over masked tokens, and the nll of each, float32 [N].

    All logits are computed where `_postprocess_outputs` is replaced, or weights require gradients; else those of the
    masked tokens only.
    """
    if "_postprocess_outputs" in replaced_steps(trainer) or row_weight.requires_grad:
        logits = trainer._postprocess_outputs(model(**inputs)).logits
        nll = F.cross_entropy(logits[tokens.row, tokens.position].float(), tokens.targets, reduction="none")
        return (row_weight * nll).sum(), nll.detach()
    predicted_at = (tokens.position - 1).clamp(min=0) if trainer.right_shift_logits else tokens.position
    rows = tokens.row * inputs["input_ids"].shape[1] + predicted_at
    return masked_loss(model, inputs, rows=rows, targets=tokens.targets, row_weight=row_weight)
