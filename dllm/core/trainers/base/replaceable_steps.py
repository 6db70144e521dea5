"""Steps of the loss that a subclass of a trainer may replace, under dLLM 0.1's names."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm.core.schedulers import BaseAlphaScheduler
from dllm.core.trainers.base.loaders import CorruptingLoaders
from dllm.core.trainers.base.normalizer import WholeStepNormalizer
from dllm.core.trainers.base.objective import Split
from dllm.core.trainers.batches import CORRUPTION
from dllm.core.trainers.collator import MDLMCollator
from dllm.fast.model import right_shift_of
from dllm.fast.training.loss import masked_loss


class ReplaceableSteps(CorruptingLoaders, WholeStepNormalizer):
    """The three steps that a subclass of :class:`~dllm.core.trainers.mdlm.MDLMTrainer` may replace.

    Names and signatures are those of dLLM 0.1. If no step is replaced, none of this runs: masks are drawn in the data
    loader's workers, and the loss is :func:`dllm.fast.training.loss.masked_loss`. If one is replaced, batches arrive
    with `labels` and are corrupted in the training process. The objective, its normaliser and the masks do not change.
    """

    scheduler: BaseAlphaScheduler

    time_epsilon = property(attrgetter("args.time_epsilon"), doc="The smallest diffusion time.")
    loss_weight_type = property(attrgetter("args.loss_weight_type"), doc="How masked tokens are weighted.")
    loss_norm_type = property(attrgetter("args.loss_norm_type"), doc="What the loss is a mean over.")

    @property
    def right_shift_logits(self) -> bool:
        """Whether p predicts the token at p + 1: the argument, else what the model's configuration says, else False."""
        if self.args.right_shift_logits is not None:
            return self.args.right_shift_logits
        return bool(right_shift_of(self.model))

    def _preprocess_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The clean batch x_0 that will be corrupted: `input_ids` and `labels` [B, L], perhaps `attention_mask`."""
        return inputs

    def _postprocess_outputs(self, outputs: Any) -> Any:
        """The model's output, with `.logits` [B, L, V] shifted so that those at p predict the token at p."""
        if self.right_shift_logits:
            outputs.logits = torch.cat([outputs.logits[:, :1], outputs.logits[:, :-1]], dim=1)
        return outputs

    def _compute_loss_weights(self, t: Tensor, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """The loss weight of each token, of a shape that broadcasts to `input_ids` [B, L].

        Args:
            t: the times, float32 [B], or [B, L] where each block has its own.
            inputs: the clean batch x_0: `input_ids`, `labels`, perhaps `attention_mask`.
            args, kwargs: `masked_mask`, bool [B, L], the tokens that are masked.
        """
        weight = torch.ones_like(t) if self.loss_weight_type == "uniform" else self.scheduler.weight(t)
        return (weight if weight.dim() == 2 else weight[:, None]).expand(inputs["input_ids"].shape)

    def _replaced_methods(self) -> list[str]:
        return replaced_steps(self) + super()._replaced_methods()

    def _ensure_corrupted(self, inputs: Mapping[str, Any], split: Split) -> Mapping[str, Any]:
        if CORRUPTION in inputs:
            return inputs
        return super()._ensure_corrupted(self._preprocess_inputs(dict(inputs)), split)

    def _corrupt(self, collator: MDLMCollator, batch: dict[str, Any]) -> dict[str, Any]:
        return collator.corrupt(batch, keep_clean=bool(replaced_steps(self)))

    def _loss_of_replaced_steps(
        self, model: nn.Module, inputs: Mapping[str, Any], scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`_weighted_loss`, computed by the replaced steps, of a batch that was corrupted with `keep_clean=True`."""
        corruption = inputs[CORRUPTION]
        tokens = masked_tokens(self, corruption)
        weight = self._normalized_weight(tokens.weight, tokens.row, corruption["maskable"])
        loss, nll = loss_of_masked_tokens(self, model, self._model_inputs(model, inputs), tokens, weight * scale)
        weighted = (tokens.weight * nll).detach()
        return loss, nll.new_zeros(len(corruption["maskable"])).index_add_(0, tokens.row, weighted)


_STEPS = ("_preprocess_inputs", "_postprocess_outputs", "_compute_loss_weights")


def replaced_steps(trainer: Any) -> list[str]:
    """The names of the steps that differ from those of this library's class, in a subclass or on the instance."""
    kinds = (kind for kind in type(trainer).__mro__ if kind.__module__.startswith("dllm."))
    ours = next((kind for kind in kinds if issubclass(kind, ReplaceableSteps)), ReplaceableSteps)
    own = {name: getattr(ours, name) for name in _STEPS}
    found = {name: getattr(trainer, name, step) for name, step in own.items()}
    return [name for name, step in found.items() if getattr(step, "__func__", step) is not own[name]]


class MaskedTokens(NamedTuple):
    """The N masked tokens of a batch.

    row, position: int64 [N], their indices in [B, L].
    targets: int64 [N], the tokens before masking.
    weight: float32 [N], from `_compute_loss_weights`.
    """

    row: Tensor
    position: Tensor
    targets: Tensor
    weight: Tensor


def masked_tokens(trainer: ReplaceableSteps, corruption: Mapping[str, Tensor]) -> MaskedTokens:
    """The masked tokens of a batch, weighted by the trainer's `_compute_loss_weights`.

    Args:
        trainer: gives the weights.
        corruption: the entry "corruption" that :meth:`~dllm.core.trainers.collator.MDLMCollator.corrupt` makes with
            `keep_clean=True`.

    Raises:
        TypeError, ValueError: the weights are no tensor, or do not broadcast to [B, L].
    """
    masked = corruption["masked"]
    clean = {name: corruption[name] for name in ("input_ids", "labels", "attention_mask") if name in corruption}
    weights = trainer._compute_loss_weights(t=corruption["times"], inputs=clean, masked_mask=masked)
    if not isinstance(weights, Tensor):
        raise TypeError(f"_compute_loss_weights must return a tensor, got {type(weights).__name__}")
    try:
        weights = weights.expand_as(masked)
    except RuntimeError:
        raise ValueError(
            f"_compute_loss_weights must return weights of the shape {list(masked.shape)}, got {list(weights.shape)}"
        ) from None
    row, position = masked.nonzero(as_tuple=True)
    return MaskedTokens(row, position, clean["input_ids"][row, position], weights[row, position].float())


def loss_of_masked_tokens(
    trainer: ReplaceableSteps, model: nn.Module, inputs: Mapping[str, Any], tokens: MaskedTokens, row_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum of row_weight x nll over the masked tokens, and the nll of each, float32 [N].

    The logits of all positions are computed only if `_postprocess_outputs` is replaced or weights require gradients.
    """
    if "_postprocess_outputs" in replaced_steps(trainer) or row_weight.requires_grad:
        logits = trainer._postprocess_outputs(model(**inputs)).logits
        nll = F.cross_entropy(logits[tokens.row, tokens.position].float(), tokens.targets, reduction="none")
        return (row_weight * nll).sum(), nll.detach()
    predicted_at = (tokens.position - 1).clamp(min=0) if trainer.right_shift_logits else tokens.position
    rows = tokens.row * inputs["input_ids"].shape[1] + predicted_at
    return masked_loss(model, inputs, rows=rows, targets=tokens.targets, row_weight=row_weight)
