"""Whether a run's training steps can be CUDA graphs, and the reasons that say no."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from accelerate import DistributedType

from dllm.core.trainers.steps import replaced_steps
from dllm.fast.training.graphs import TrainingGraphs

if TYPE_CHECKING:
    from dllm.core.trainers.mdlm import MDLMTrainer

_log = logging.getLogger("dllm")


def training_graphs(trainer: MDLMTrainer, compute_loss: object) -> TrainingGraphs | None:
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


def obstacles(trainer: MDLMTrainer, compute_loss: object) -> Iterator[tuple[str, str]]:
    """What a captured step needs and this run has not, and what it has instead."""
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
