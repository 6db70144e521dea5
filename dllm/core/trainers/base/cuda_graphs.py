"""Training steps as CUDA graphs, and the conditions under which a run cannot use them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import transformers
from accelerate import DistributedType
from torch import Tensor, nn

from dllm.core.trainers.base.objective import Objective
from dllm.core.trainers.base.replaceable_steps import replaced_steps
from dllm.fast.training.graphs import TrainingGraphs
from dllm.fast.training.loss import masked_loss

_log = logging.getLogger("dllm")


class GraphedSteps(Objective):
    """A Trainer that replays training steps as CUDA graphs.

    A graph holds the forward, the loss and the backward. One is captured for each shape that comes up often, on a CUDA
    device and in one process. `args.cuda_graph` decides:

    - None: steps are captured where that is possible; otherwise the reason is logged once;
    - True: every step is a replay; what prevents that is an error;
    - False: every step is eager.

    A step with a hook that must be called inside it, or with layers dropped at random by the host, is eager.

    To keep the number of shapes small, the masked rows of a batch are padded with rows of weight 0 to a multiple of an
    eighth of its positions, and the trainer's own collator pads a batch to a multiple of 64 positions. Gradients stay
    at the same addresses in every step.

    Attributes:
        graphs: the captured graphs; None where all steps are eager.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.graphs = training_graphs(self, Objective.compute_loss)
        self._in_training_step = False

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as transformers' Trainer does, then free the graphs."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.graphs is not None:
                self.graphs.clear()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Train on one batch, as transformers' Trainer. With graphs, computing the loss also runs the backward."""
        self._in_training_step = True
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._in_training_step = False

    def _masked_loss(self, model: nn.Module, inputs: Mapping[str, Any], **rows: Tensor) -> tuple[Tensor, Tensor]:
        """:func:`dllm.fast.training.loss.masked_loss`; a replay in a training step where there are graphs."""
        if self.graphs is None or not self._in_training_step:
            return masked_loss(model, inputs, **rows)
        loss, nll = self.graphs.step(model, inputs, **rows)
        loss.requires_grad_()  # a leaf, so that transformers' call of backward does nothing
        return loss, nll


def training_graphs(trainer: transformers.Trainer, compute_loss: object) -> TrainingGraphs | None:
    """The graphs of a trainer; None where its steps are eager.

    Args:
        trainer: its `args.cuda_graph` is None, True or False.
        compute_loss: the function that a captured step computes.

    Raises:
        ValueError: `cuda_graph=True`, and the run does not meet a condition of :func:`obstacles`.
    """
    if trainer.args.cuda_graph is False:
        return None
    lacking = "; ".join(f"{need}, got {got}" for need, got in obstacles(trainer, compute_loss))
    if not lacking:
        return TrainingGraphs(trainer.args.cuda_graph)
    if trainer.args.cuda_graph:
        raise ValueError(f"cuda_graph=True needs {lacking}")
    _log.info("eager training steps: a CUDA graph needs %s", lacking)
    return None


def obstacles(trainer: transformers.Trainer, compute_loss: object) -> Iterator[tuple[str, str]]:
    """Each condition of a captured step that the run does not meet, with what the run has instead."""
    args, kind = trainer.args, trainer.accelerator.distributed_type
    if args.device.type != "cuda":
        yield "a CUDA device", str(args.device)
    if args.world_size > 1 or kind != DistributedType.NO:
        yield "one process without a wrapper around the model", f"{args.world_size} with {kind.value}"
    if trainer.is_model_parallel:
        yield "the model on one device", "a model on several"
    if args.fp16:
        yield "bf16 or float32", "fp16, whose loss scale the host decides on"
    if "lomo" in args.optim:
        yield "an optimizer apart from the backward", str(getattr(args.optim, "value", args.optim))
    if getattr(trainer.compute_loss, "__func__", None) is not compute_loss:
        yield "MDLMTrainer's own compute_loss", f"another, of {type(trainer).__name__}"
    if replaced := replaced_steps(trainer):
        yield "MDLMTrainer's own steps of the loss", f"another {' and '.join(replaced)}, of {type(trainer).__name__}"
    checkpointing = args.gradient_checkpointing_kwargs or {}
    if args.gradient_checkpointing and checkpointing.get("preserve_rng_state", True):
        # torch reads the generator's state in each forward, which no capture allows
        wanted = 'gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": False}'
        yield f"gradient checkpointing with {wanted}", str(args.gradient_checkpointing_kwargs)
