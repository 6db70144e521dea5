"""The mechanics that every diffusion trainer has, put together on transformers' Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from dllm.core.trainers.checkpoints import Checkpoints
from dllm.core.trainers.checks import ModelChecks
from dllm.core.trainers.config import MDLMConfig
from dllm.core.trainers.graphed import GraphedSteps
from dllm.core.trainers.loaders import CorruptingLoaders
from dllm.core.trainers.measures import Measures
from dllm.core.trainers.normalizer import WholeStepNormalizer
from dllm.core.trainers.padding import padding_collator
from dllm.core.trainers.sharding import check_fsdp, keep_fsdp
from dllm.fast.model import find_mask_id, input_embedding


class DiffusionTrainer(Checkpoints, Measures, CorruptingLoaders, WholeStepNormalizer, GraphedSteps, ModelChecks):
    """A Trainer with everything but the objective, which a subclass gives by `_collator` and `_weighted_loss`
    (:class:`~dllm.core.trainers.objective.Objective`).

    - :class:`~dllm.core.trainers.loaders.CorruptingLoaders`: batches are corrupted by the data loaders. What is masked
      depends on the run's seed, the sample's tokens and the epoch alone.
    - :class:`~dllm.core.trainers.normalizer.WholeStepNormalizer`: the loss is normalised over a whole optimizer step.
    - :class:`~dllm.core.trainers.measures.Measures`: what is measured and logged, the training curve, evaluation.
    - :class:`~dllm.core.trainers.checkpoints.Checkpoints`: whole checkpoints, exact resumption, averaged weights.
    - :class:`~dllm.core.trainers.graphed.GraphedSteps`: training steps as CUDA graphs.
    - :class:`~dllm.core.trainers.checks.ModelChecks`: what the model sees is tried before the first batch.

    FSDP2 works on a CPU too (:mod:`dllm.core.trainers.sharding`). SIGINT and SIGTERM stop a run with a checkpoint
    within :func:`~dllm.core.trainers.interruption.stopped_by_signals`.
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
        # kept in samples even where the model itself takes none
        self.label_names = list(dict.fromkeys(["labels", *(args.label_names or ())]))
        self._vocab_size = _size_of_vocabulary(self.model)
        self.mask_id = self._find_mask_id()
        self._make_collators()

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers' Trainer; FSDP on a CPU too."""
        check_fsdp(self.args.device)
        super().create_accelerator_and_postprocess()
        keep_fsdp(self)

    def _find_mask_id(self) -> int:
        """Of the tokenizer, if it has a mask token; else of the model's config."""
        named = getattr(self.processing_class, "mask_token_id", None) is not None
        mask_id = find_mask_id(self.model, None, self.processing_class if named else None)
        if not 0 <= mask_id < self._vocab_size:
            raise ValueError(f"the mask token must lie in the vocabulary of {self._vocab_size} tokens, got {mask_id}")
        return mask_id


def _size_of_vocabulary(model: nn.Module) -> int:
    """Rows of the input embedding, of the whole of it where ZeRO-3 has spread it over ranks."""
    weight = input_embedding(model)
    return getattr(weight, "ds_shape", weight.shape)[0]
