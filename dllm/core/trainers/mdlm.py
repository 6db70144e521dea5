"""Masked diffusion (MDLM, LLaDA): the objective. What its trainer does besides is in `base/`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from dllm.core.schedulers import BaseAlphaScheduler, LinearAlphaScheduler
from dllm.core.trainers.base import DiffusionTrainer
from dllm.core.trainers.base.replaceable_steps import ReplaceableSteps
from dllm.core.trainers.batches import CORRUPTION
from dllm.core.trainers.collator import MDLMCollator
from dllm.core.trainers.config import NORM_TYPES, WEIGHT_TYPES, MDLMConfig
from dllm.fast.model import block_size_of, unwrapped

__all__ = ["NORM_TYPES", "WEIGHT_TYPES", "MDLMConfig", "MDLMTrainer"]

_log = logging.getLogger("dllm")


class MDLMTrainer(ReplaceableSteps, DiffusionTrainer):
    r"""Trains a masked language model by masked diffusion (MDLM, LLaDA). Logits are computed for masked tokens only.

    For a sample of tokens x with time t ~ U(time_epsilon, time_max), each token that has a label is masked with
    probability 1 - alpha(t), and

    .. math::
        loss = \frac{1}{Z} \sum_{samples} c \, w(t) \sum_{masked\ i} -\log p(x_i \mid x_t)

    with w(t) = -alpha'(t) / (1 - alpha(t) + 1e-6), or w = 1 for `loss_weight_type="uniform"`; the collator
    computes it with the masks (:class:`~dllm.core.trainers.collator.MDLMCollator`). The normaliser Z and the
    factor c follow `loss_norm_type`:

    - "token": Z counts the tokens that have a label, c = 1;
    - "sequence": Z counts samples, c = 1 / (tokens of the sample that have a label);
    - "batch": Z counts samples, c = 1.

    Z is taken over the whole optimizer step, all its forwards and all ranks, so k forwards of n samples make the same
    step as one forward of k n samples.

    :class:`~dllm.core.trainers.base.trainer.DiffusionTrainer` does everything but the loss: masks that depend on the
    run's seed, the sample's tokens and the epoch alone; logs of `nll`, `ppl`, tokens per second, MFU and memory;
    averaged weights (`ema_decay`); exact resumption; CUDA graphs (`cuda_graph`); a check of the model's attention
    before the first batch.

    A subclass may replace `_preprocess_inputs`, `_postprocess_outputs` and `_compute_loss_weights`
    (:class:`~dllm.core.trainers.base.replaceable_steps.ReplaceableSteps`), or `compute_loss`. As in dLLM 0.1, a
    replaced `compute_loss` is given batches as they were collated, with `labels`. Its loss is divided by the number of
    forwards in the optimizer step, unless it comes from this class's `compute_loss` with `num_items_in_batch`. It may
    record `nll` and `ppl` by `self.meter.update(split=..., value=..., weight=...)`.

    Args:
        args: :class:`MDLMConfig`.
        scheduler: alpha(t); linear if not given.
        model: as in transformers' Trainer; with `get_output_embeddings()`.
        tokenizer, processing_class: two names of one argument; it names the mask token and the padding token.
        data_collator: gives `input_ids` and `labels`, padded on the right. By default the tokenizer pads samples.
        options: other arguments of transformers' Trainer.

    Raises:
        TypeError: `args` is not an MDLMConfig; both names of the tokenizer are given; transformers refuses an argument.
        ValueError: no mask token is known; one process has several GPUs; compute_metrics or compute_loss_func is given
            (there are no logits of all positions); `cuda_graph=True` and the run cannot be captured. In `train`: the
            model is causal; a sample exceeds the model's positions; a batch is padded although the model attends to
            padding; :class:`~dllm.core.trainers.collator.MDLMCollator` refuses a batch. In
            `train(resume_from_checkpoint=...)`: the checkpoint holds weights only.
        RuntimeError: in training, `cuda_graph=True` and a step cannot be captured.

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

    attends_by_blocks: ClassVar[bool] = False  # whether training restricts attention to blocks

    def __init__(
        self,
        args: MDLMConfig,
        scheduler: BaseAlphaScheduler | None = None,
        model: nn.Module | None = None,
        **options: Any,
    ):
        self.scheduler = scheduler if scheduler is not None else LinearAlphaScheduler()
        super().__init__(args, model, **options)
        self._warn_of_lost_blocks()
        if replaced := self._replaced_methods():
            names = " and ".join(replaced)
            _log.info("%s has its own %s: masks are drawn in the training process", type(self).__name__, names)

    def _warn_of_lost_blocks(self) -> None:
        """Say once that a model of blocks is trained to attend to whole rows, which its samplers do not do."""
        size = block_size_of(unwrapped(self.model))
        if size is not None and not self.attends_by_blocks:
            _log.warning(
                "the model attends block by block, %d tokens each, by its configuration, and %s trains it to attend to "
                "whole rows: BD3LMTrainer keeps its blocks",
                size,
                type(self).__name__,
            )

    def _make_collator(self, kind: type[MDLMCollator] = MDLMCollator, **options: Any) -> MDLMCollator:
        own = dict(
            low=self.args.time_epsilon,
            high=self.args.time_max,
            uniform_weight=self.args.loss_weight_type == "uniform",
            right_shift=self.right_shift_logits,
        )
        return kind(**self._collator_options(), **own, **options)

    def _weighted_loss(self, model: nn.Module, inputs: Mapping[str, Any], scale: Tensor) -> tuple[Tensor, Tensor]:
        self._check_batch(model, inputs)
        corruption, tokens = inputs[CORRUPTION], inputs["input_ids"]
        if "masked" in corruption:
            return self._loss_of_replaced_steps(model, inputs, scale)
        sample = corruption["rows"] // tokens.shape[1]
        weight = self._normalized_weight(corruption["weight"], sample, corruption["maskable"])
        loss, nll = self._masked_loss(
            model,
            self._model_inputs(model, inputs),
            rows=corruption["rows"],
            targets=corruption["targets"],
            row_weight=weight * scale,
        )
        return loss, nll.new_zeros(len(tokens)).index_add_(0, sample, corruption["weight"] * nll)
