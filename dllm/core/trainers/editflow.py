"""Edit Flows: the objective, rates and tokens of the edits that lead from x_t to the data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torchmetrics
from torch import Tensor, nn

from dllm.core.schedulers import BaseKappaScheduler, get_kappa_scheduler_class, make_kappa_scheduler
from dllm.core.trainers.base import DiffusionTrainer
from dllm.core.trainers.batches import CORRUPTION
from dllm.core.trainers.config import MDLMConfig, check_fixed
from dllm.core.trainers.edit_collator import EditCorruptingCollator, EditFlowCollator
from dllm.core.trainers.utils.metrics import MeanMetric
from dllm.fast.model import unwrapped
from dllm.fast.training.dropout import fast_dropout
from dllm.fast.training.edit_loss import EditTargets
from dllm.fast.training.loss import with_exact_value

__all__ = ["EditFlowCollator", "EditFlowTrainer", "EditFlowTrainerConfig"]

_ROWS = ("sub_rows", "del_rows", "ins_rows", "sub_targets", "ins_targets")


@dataclass
class EditFlowTrainerConfig(MDLMConfig):
    """Arguments of :class:`EditFlowTrainer`: those of :class:`~dllm.core.trainers.mdlm.MDLMConfig` that apply, and the
    fields below. The time is t = (1 - time_epsilon) U.

    Raises:
        TypeError, ValueError: as the parent class; a field that does not apply differs from its default; kappa is
            unknown; max_w is not above 0.

    Example:
        >>> EditFlowTrainerConfig(output_dir="out", report_to="none", normalize_per_position=False).loss_norm_type
        'batch'
    """

    loss_norm_type: str = field(
        default="sequence", metadata={"help": "sequence: each sample's loss by its tokens; batch: undivided."}
    )
    cuda_graph: bool | None = field(default=False, metadata={"help": "False: texts differ in length at every step."})
    kappa_scheduler: str = field(default="cubic", metadata={"help": "kappa(t): cubic, linear or cosine."})
    max_w: float = field(default=20.0, metadata={"help": "The largest weight w(t) of a sample's loss."})
    normalize_per_position: bool | None = field(
        default=None, metadata={"help": "True: loss_norm_type sequence; False: batch. The name in dLLM 0.1."}
    )

    def __post_init__(self):
        if self.normalize_per_position is not None:
            named = "sequence" if self.normalize_per_position else "batch"
            if self.loss_norm_type not in ("sequence", named):
                raise ValueError(
                    f"normalize_per_position {self.normalize_per_position} is loss_norm_type {named}, got "
                    f"{self.loss_norm_type}"
                )
            self.loss_norm_type = named
        fixed = dict(loss_weight_type="scheduler", right_shift_logits=None, time_max=1.0, cuda_graph=False)
        check_fixed(self, fixed, "Edit Flows")
        if self.loss_norm_type not in ("sequence", "batch"):
            raise ValueError(f"loss_norm_type must be sequence or batch, got {self.loss_norm_type!r}")
        get_kappa_scheduler_class(self.kappa_scheduler)
        if not 0 < self.max_w < math.inf:
            raise ValueError(f"max_w must be above 0 and finite, got {self.max_w}")
        super().__post_init__()
        if not 0 < self.time_epsilon:
            raise ValueError(f"time_epsilon must be above 0, as w(1) has no bound, got {self.time_epsilon}")


class EditFlowTrainer(DiffusionTrainer):
    r"""Trains a model of Edit Flows: rates of substitutions, deletions and insertions, and their tokens.

    A pair (x_0, x_1) is aligned with the fewest edits. At t = (1 - time_epsilon) U each column of the alignment shows
    x_1 with probability :math:`\kappa(t)`, else x_0, which makes x_t, of n tokens. With the rates
    :math:`\hat r` and the tokens' distributions Q that the model gives for x_t,

    .. math::
        loss = \frac{1}{Z} \sum_{samples} \frac{\min(w(t), max_w)}{|x_1|} \Big[ \sum_{p < n} \sum_{kind} \hat r^{kind}_p
               - \sum_{edits\ e} \big( \ln \hat r_e + \ln Q_e(token_e) \big) \Big], \qquad
        w(t) = \frac{\kappa'(t)}{1 - \kappa(t)}

    over the edits e that are left from x_t to x_1. Z counts the samples of the whole optimizer step, all its forwards
    and all ranks. With `loss_norm_type="batch"` a sample's loss is not divided by :math:`|x_1|`. No logits are computed
    but those of edits (:func:`~dllm.fast.training.edit_loss.edit_flow_loss`).

    :class:`~dllm.core.trainers.base.trainer.DiffusionTrainer` does everything but the loss: draws that depend on the
    run's seed, the sample's tokens and the epoch alone; logs; averaged weights; exact resumption; a check of the
    model's attention before the first batch. In place of `nll` and `ppl` it logs `loss_per_token`, the weighted loss by
    the number of tokens of x_1, and in place of masked tokens per second `edited_tokens_per_second`, those that are
    substituted or inserted.

    Args:
        args: :class:`EditFlowTrainerConfig`.
        scheduler: kappa(t), in place of `args.kappa_scheduler`. The model's configuration keeps it for the sampler.
        model: a :class:`dllm.models.EditFlowModel`, perhaps with an adapter.
        tokenizer, processing_class: two names of one argument; it names the mask token, BOS and the padding token.
        data_collator: gives pairs, as :class:`~dllm.core.trainers.edit_collator.EditFlowCollator` does, which is the
            default, with 128 masks for the answer.
        options: other arguments of transformers' Trainer.

    Raises:
        TypeError, ValueError: as :class:`~dllm.core.trainers.mdlm.MDLMTrainer`; `args` is not an
            EditFlowTrainerConfig; the model has no heads of edits. In training:
            :class:`~dllm.core.trainers.edit_collator.EditCorruptingCollator` refuses a batch.

    Source: Edit Flows (arXiv:2506.09018); the names are those of dLLM 0.1.

    Example:
        >>> import tempfile
        >>> from types import SimpleNamespace
        >>> from transformers import ModernBertConfig
        >>> from dllm.models import EditFlowConfig, EditFlowModel
        >>> size = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=50)
        >>> special = dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), 1)
        >>> model = EditFlowModel(EditFlowConfig(ModernBertConfig(**size, **special), mask_token_id=3))
        >>> tokens = SimpleNamespace(mask_token_id=3, bos_token_id=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = EditFlowTrainerConfig(
        ...         output_dir=folder, report_to="none", eval_strategy="no", save_strategy="no", max_steps=2,
        ...         use_cpu=True, bf16=False, disable_tqdm=True, logging_strategy="no",
        ...     )
        ...     collator = EditFlowCollator(tokens, "masks[length:4]")
        ...     samples = [{"input_ids": [5, 6, 7]}] * 8
        ...     trainer = EditFlowTrainer(config, model=model, train_dataset=samples, data_collator=collator)
        ...     _ = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> trainer.state.global_step
        2
    """

    EditFlowConfig: ClassVar[type[EditFlowTrainerConfig]] = EditFlowTrainerConfig
    predicted: ClassVar[str] = "edited_tokens"

    def __init__(
        self,
        args: EditFlowTrainerConfig,
        scheduler: BaseKappaScheduler | None = None,
        model: nn.Module | None = None,
        *,
        tokenizer: Any = None,
        processing_class: Any = None,
        data_collator: Any = None,
        **options: Any,
    ):
        if not isinstance(args, EditFlowTrainerConfig):
            raise TypeError(f"args must be an EditFlowTrainerConfig, got {type(args).__name__}")
        self.scheduler = make_kappa_scheduler(args.kappa_scheduler) if scheduler is None else scheduler
        if not isinstance(self.scheduler, BaseKappaScheduler):
            raise TypeError(f"scheduler must be a BaseKappaScheduler, got {type(self.scheduler).__name__}")
        if model is not None and not hasattr(unwrapped(model), "rate_heads"):
            raise ValueError(f"the model must be an EditFlowModel, with heads of edits, got {type(model).__name__}")
        if data_collator is None:
            data_collator = EditFlowCollator(processing_class if tokenizer is None else tokenizer)
        names = dict(tokenizer=tokenizer, processing_class=processing_class)
        super().__init__(args, model, data_collator=data_collator, **names, **options)
        trained_with = dict(name=type(self.scheduler).__name__) | dataclasses.asdict(self.scheduler)
        unwrapped(self.model).config.kappa_scheduler = trained_with  # for the sampler; saved with the model

    def _make_collator(self) -> EditCorruptingCollator:
        own = dict(low=0.0, high=1 - self.args.time_epsilon, max_weight=self.args.max_w)
        return EditCorruptingCollator(**self._collator_options(), **own)

    def _weighted_loss(self, model: nn.Module, inputs: Mapping[str, Any], scale: Tensor) -> tuple[Tensor, Tensor]:
        self._check_batch(model, inputs)
        corruption = inputs[CORRUPTION]
        weight, sample = corruption["weight"], torch.arange(len(corruption["weight"]), device=scale.device)
        edits = EditTargets(
            lengths=corruption["lengths"],
            sample_weight=self._normalized_weight(weight, sample, corruption["maskable"]) * scale,
            **{name: corruption[name] for name in _ROWS},
        )
        with fast_dropout(scale.device):
            output = model(**self._model_inputs(model, inputs), edits=edits)
        return with_exact_value(output.loss, output.exact.loss), weight * output.exact.of_samples

    def _metrics(self, device: torch.device) -> dict[str, torchmetrics.Metric]:
        return {"loss_per_token": MeanMetric(device)}

    def _on_train_begin(self) -> None:
        super()._on_train_begin()
        self._flops.body -= self._flops.head  # a token that is substituted or inserted meets one head

    def _set_signature_columns_if_needed(self) -> None:
        """transformers' Trainer drops the columns that the model does not take; the collator takes this one."""
        super()._set_signature_columns_if_needed()
        self._signature_columns = sorted({*self._signature_columns, "prompt_len"})
