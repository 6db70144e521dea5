"""Training by masked diffusion (MDLM, LLaDA)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dllm.core.schedulers import BaseAlphaScheduler, LinearAlphaScheduler
from dllm.core.trainers.base import DiffusionTrainer
from dllm.core.trainers.batches import CORRUPTION
from dllm.core.trainers.collator import MDLMCollator
from dllm.core.trainers.config import NORM_TYPES, WEIGHT_TYPES, MDLMConfig
from dllm.core.trainers.steps import ReplaceableSteps

__all__ = ["NORM_TYPES", "WEIGHT_TYPES", "MDLMConfig", "MDLMTrainer"]

_log = logging.getLogger("dllm")


class MDLMTrainer(ReplaceableSteps, DiffusionTrainer):
    r"""Trains a masked language model by masked diffusion (MDLM, LLaDA), the loss costing what the masked tokens cost.

    For a sample of tokens x with time t ~ U(time_epsilon, time_max), each token that has a label is masked with
    probability 1 - alpha(t), and

    .. math::
        loss = \frac{1}{Z} \sum_{samples} c \, w(t) \sum_{masked\ i} -\log p(x_i \mid x_t)

    with w(t) = -alpha'(t) / (1 - alpha(t) + 1e-6), or 1 for `loss_weight_type="uniform"`. For `loss_norm_type`
    "token" c = 1 and Z counts the tokens that have a label; for "sequence" c = 1 / (tokens of the sample that have a
    label) and Z counts samples; for "batch" c = 1 and Z counts samples. Z is that of the whole optimizer step, all its
    forwards and all ranks: k forwards of n samples are the same step as one of k n.

    Everything but the loss is that of :class:`~dllm.core.trainers.base.DiffusionTrainer`: masks that depend on the
    run's seed, the sample's tokens and the epoch alone; logs of `nll`, `ppl`, tokens per second, MFU and memory;
    averaged weights (`ema_decay`); exact resumption; CUDA graphs (`cuda_graph`); a test of what the model sees before
    the first batch.

    A subclass may replace `_preprocess_inputs`, `_postprocess_outputs` and `_compute_loss_weights`
    (:class:`~dllm.core.trainers.steps.ReplaceableSteps`), or `compute_loss`: as in dLLM 0.1 that is then given batches
    as they were collated, with `labels`, and its loss is divided by the number of the step's forwards, unless it comes
    from this class's `compute_loss` with `num_items_in_batch`. `meter` keeps `nll` and `ppl` of training and
    evaluation; a `compute_loss` of its own feeds them by `self.meter.update(split=..., value=..., weight=...)`.

    Args:
        args: :class:`MDLMConfig`.
        scheduler: alpha(t); linear if not given.
        model: as in transformers' Trainer; with `get_output_embeddings()`.
        tokenizer, processing_class: two names of the same; it names the mask token and the padding token.
        data_collator: gives `input_ids` and `labels`, padded on the right. By default the tokenizer
            pads samples.
        options: all else that transformers' Trainer takes.

    Raises:
        TypeError: args that are no MDLMConfig, both names of the tokenizer, or arguments that transformers refuses.
        ValueError: no mask token is known; several GPUs in one process; compute_metrics or compute_loss_func (there
            are no logits); `cuda_graph=True` where no graph can be captured. In `train`: a causal model, samples that
            exceed the model's positions, padded batches where padding is seen, what
            :class:`~dllm.core.trainers.collator.MDLMCollator` refuses. In `train(resume_from_checkpoint=...)`: a
            checkpoint that holds weights only.
        RuntimeError: in training, `cuda_graph=True` and a step that cannot be captured.

    Source: MDLM (arXiv:2406.07524), LLaDA (arXiv:2502.09992); the names are those of dLLM 0.1.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> tiny = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=50)
        >>> model = BertForMaskedLM(BertConfig(**tiny, mask_token_id=3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = MDLMConfig(
        ...         output_dir=folder, report_to="none", eval_strategy="no", save_strategy="no", max_steps=2,
        ...         use_cpu=True, bf16=False, disable_tqdm=True, logging_strategy="no",
        ...     )
        ...     trainer = MDLMTrainer(config, model=model, train_dataset=[{"input_ids": [5, 6, 7]}] * 8)
        ...     _ = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> trainer.state.global_step
        2
    """

    def __init__(
        self,
        args: MDLMConfig,
        scheduler: BaseAlphaScheduler | None = None,
        model: nn.Module | None = None,
        **options: Any,
    ):
        self.scheduler = scheduler if scheduler is not None else LinearAlphaScheduler()
        super().__init__(args, model, **options)
        if replaced := self._replaced():
            _log.info("%s has its own %s: masks are drawn here", type(self).__name__, " and ".join(replaced))

    def _collator(self, kind: type[MDLMCollator] = MDLMCollator, **options: Any) -> MDLMCollator:
        args = self.args
        return kind(
            base=self.data_collator,
            scheduler=self.scheduler,
            mask_id=self.mask_id,
            pad_id=getattr(self.processing_class, "pad_token_id", None),
            vocab_size=self._vocab_size,
            seed=args.seed,
            low=args.time_epsilon,
            high=args.time_max,
            antithetic=args.antithetic_time,
            uniform_weight=args.loss_weight_type == "uniform",
            right_shift=args.right_shift_logits,
            positions=self._positions if self._positions_end else None,
            **options,
        )

    def _weighted_loss(self, model: nn.Module, inputs: Mapping[str, Any], scale: Tensor) -> tuple[Tensor, Tensor]:
        self._check(model, inputs)
        chosen, tokens = inputs[CORRUPTION], inputs["input_ids"]
        if "masked" in chosen:
            return self._loss_of_replaced_steps(model, inputs, scale)
        sample = chosen["rows"] // tokens.shape[1]
        weight = self._normalized_weight(chosen["weight"], sample, chosen["maskable"])
        loss, nll = self._masked_loss(
            model,
            self._model_inputs(model, inputs),
            rows=chosen["rows"],
            targets=chosen["targets"],
            row_weight=weight * scale,
        )
        return loss, nll.new_zeros(len(tokens)).index_add_(0, sample, chosen["weight"] * nll)
