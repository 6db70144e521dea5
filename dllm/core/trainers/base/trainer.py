"""DiffusionTrainer: transformers' Trainer with everything that a diffusion objective needs around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from dllm.core.trainers.base.checkpoints import Checkpoints
from dllm.core.trainers.base.checks import ModelChecks
from dllm.core.trainers.base.compiled_steps import CompiledSteps
from dllm.core.trainers.base.cuda_graphs import GraphedSteps
from dllm.core.trainers.base.loaders import CorruptingLoaders
from dllm.core.trainers.base.metric_logging import MetricLogging
from dllm.core.trainers.base.normalizer import WholeStepNormalizer
from dllm.core.trainers.base.sharding import check_fsdp, set_up_fsdp
from dllm.core.trainers.config import MDLMConfig
from dllm.core.trainers.padding import padding_collator
from dllm.fast.int8 import check_trainable
from dllm.fast.model import find_mask_id, input_embedding


class DiffusionTrainer(
    Checkpoints, MetricLogging, CorruptingLoaders, WholeStepNormalizer, GraphedSteps, CompiledSteps, ModelChecks
):
    """A Trainer with everything but the objective.

    A subclass gives the objective by `_make_collator` and `_weighted_loss`
    (:class:`~dllm.core.trainers.base.objective.Objective`). The rest comes from

    - :class:`~dllm.core.trainers.base.loaders.CorruptingLoaders`: data loaders that mask tokens;
    - :class:`~dllm.core.trainers.base.normalizer.WholeStepNormalizer`: one normaliser for a whole optimizer step
      (`_normalized_weight`);
    - :class:`~dllm.core.trainers.base.metric_logging.MetricLogging`: NLL, perplexity, throughput, evaluation;
    - :class:`~dllm.core.trainers.base.checkpoints.Checkpoints`: complete checkpoints, resumption, averaged weights;
    - :class:`~dllm.core.trainers.base.cuda_graphs.GraphedSteps`: the loss (`_masked_loss`) by
      :func:`dllm.fast.training.loss.masked_loss`, eagerly or in a CUDA graph;
    - :class:`~dllm.core.trainers.base.compiled_steps.CompiledSteps`: the model's body through torch.compile;
    - :class:`~dllm.core.trainers.base.checks.ModelChecks`: a check of the model's attention before the first batch.

    FSDP2 works on a CPU too (:mod:`dllm.core.trainers.base.sharding`). Inside
    :func:`~dllm.core.trainers.interruption.stopped_by_signals`, SIGINT and SIGTERM stop a run with a checkpoint.
    """

    def __init__(
        self,
        args: MDLMConfig,
        model: nn.Module | None = None,
        *,
        tokenizer: Any = None,
        processing_class: Any = None,
        data_collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
        **options: Any,
    ):
        if not isinstance(args, MDLMConfig):
            raise TypeError(f"args must be an MDLMConfig, got {type(args).__name__}")
        if tokenizer is not None and processing_class is not None:
            raise TypeError("tokenizer and processing_class are two names of one argument: give one")
        for name in ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics"):
            if options.get(name) is not None:
                raise ValueError(f"{name} cannot be used: logits of all positions are never computed")
        if args.n_gpu > 1:
            raise ValueError(
                f"one process must have one GPU, got {args.n_gpu}: start with `accelerate launch` or `torchrun`, or "
                "set CUDA_VISIBLE_DEVICES"
            )
        if model is not None:
            check_trainable(model)
        tokenizer = tokenizer if tokenizer is not None else processing_class
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            data_collator=data_collator if data_collator is not None else padding_collator(tokenizer),
            **options,
        )
        if self.graphs is not None and data_collator is None:
            self.data_collator = padding_collator(tokenizer, few_shapes=True, positions=self._positions)
        # samples keep their labels even where the model's forward takes none
        self.label_names = list(dict.fromkeys(["labels", *(args.label_names or ())]))
        self._vocab_size = _size_of_vocabulary(self.model)
        self.mask_id = self._find_mask_id()
        self._make_collators()

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator as transformers' Trainer does, and allow FSDP on a CPU."""
        check_fsdp(self.args.device)
        super().create_accelerator_and_postprocess()
        set_up_fsdp(self)

    def _find_mask_id(self) -> int | None:
        """The mask token of the tokenizer, if it has one, else of the model's config; None where an objective has
        none."""
        named = getattr(self.processing_class, "mask_token_id", None) is not None
        mask_id = find_mask_id(self.model, None, self.processing_class if named else None)
        if not 0 <= mask_id < self._vocab_size:
            raise ValueError(f"the mask token must lie in the vocabulary of {self._vocab_size} tokens, got {mask_id}")
        return mask_id


def _size_of_vocabulary(model: nn.Module) -> int:
    """Rows of the input embedding; of the full one where ZeRO-3 has sharded it."""
    weight = input_embedding(model)
    return getattr(weight, "ds_shape", weight.shape)[0]
