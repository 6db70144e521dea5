"""Training steps as CUDA graphs, and the reasons against it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import transformers
from accelerate import DistributedType
from torch import Tensor, nn

from dllm.core.trainers.objective import Objective
from dllm.core.trainers.steps import replaced_steps
from dllm.fast.training.graphs import TrainingGraphs
from dllm.fast.training.loss import masked_loss

_log = logging.getLogger("dllm")


class GraphedSteps(Objective):
    """A Trainer that captures the forward, the loss and the backward of a training step as a CUDA graph, one for each
    shape that comes up often, and replays it: the same step with one launch.

    It does so on a CUDA device, in one process, as `args.cuda_graph` says: None, where nothing stands against it, and
    what does is logged once; True, always, and what stands against it is an error; False, never. Steps are eager, too,
    where a hook would have to be called within the step, or a layer is dropped by numbers that the host draws.

    So that there are few shapes, the masked rows of a batch are rounded up to an eighth of its positions with rows of
    weight 0, and a batch that the trainer pads itself has a multiple of 64 positions. Gradients lie in the same memory
    at every step.

    Attributes:
        graphs: the graphs that have been captured; None where steps are eager.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.graphs = training_graphs(self, Objective.compute_loss)
        self._in_training_step = False

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' Trainer; the graphs are freed at the end."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.graphs is not None:
                self.graphs.clear()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """As transformers' Trainer; with graphs the loss that it asks for comes with its backward already done."""
        self._in_training_step = True
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._in_training_step = False

    def _masked_loss(self, model: nn.Module, inputs: Mapping[str, Any], **rows: Tensor) -> tuple[Tensor, Tensor]:
        """:func:`dllm.fast.training.loss.masked_loss`, replayed within a training step where there are graphs."""
        if self.graphs is None or not self._in_training_step:
            return masked_loss(model, inputs, **rows)
        loss, nll = self.graphs.step(model, inputs, **rows)
        loss.requires_grad_()  # a leaf: the backward that transformers calls finds nothing left to do
        return loss, nll


def training_graphs(trainer: transformers.Trainer, compute_loss: object) -> TrainingGraphs | None:
    """What captures and replays the steps of a trainer; None where they are to be eager.

    Args:
        trainer: whose `args.cuda_graph` is None (where it can be done), True or False.
        compute_loss: the function whose loss a captured step computes.

    Raises:
        ValueError: `cuda_graph=True`, and the run lacks something that a captured step needs.
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
    """What a captured step needs and this run does not have, and what it has instead."""
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
