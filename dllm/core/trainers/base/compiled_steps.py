"""Training steps whose body runs through torch.compile, and the conditions under which a run cannot have them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import transformers
from accelerate import DistributedType
from torch import Tensor, nn

from dllm.core.trainers.base.checks import longest_sample
from dllm.core.trainers.base.objective import Objective
from dllm.fast.compiled.body import CannotCompile, CompiledBody, why_compiled_already
from dllm.fast.compiled.decision import why_it_does_not_pay, why_not_compile

# The length of a sample where the data do not tell it.
_LENGTH = 256
# Every process has the whole model: no weights are gathered or moved inside the body.
_WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)

_log = logging.getLogger("dllm")


class CompiledSteps(Objective):
    """A Trainer that compiles the forward and the backward of the model's body (:mod:`dllm.fast.compiled`).

    The head with its loss, the optimizer, evaluation and everything else stay as they are. The model's modules are not
    wrapped, so checkpoints have the names of an eager run. `args.compile_body` decides:

    - None: the body is compiled where the run has enough forwards to pay for it. This depends on the model, the data
      and the arguments alone, so that a resumed run decides as before. The reason is logged otherwise;
    - True: the body is compiled; what prevents that is an error;
    - False: it is eager.

    One graph serves batches of any size and length. Losses are those of an eager run up to rounding; with dropout they
    are those of other random masks, which follow from the run's seed as well.

    Attributes:
        compiled: the compiled body; None where it is eager.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.compiled: CompiledBody | None = None
        if self.args.compile_body and (lacking := "; ".join(f"{n}, got {g}" for n, g in obstacles(self))):
            raise ValueError(f"compile_body=True needs {lacking}")

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Train on one batch, as transformers' Trainer, with the compiled body where there is one."""
        with nullcontext() if self.compiled is None else self.compiled.in_place():
            return super().training_step(model, inputs, num_items_in_batch)

    def _on_train_begin(self) -> None:
        super()._on_train_begin()
        self.compiled = None
        if self.args.compile_body is False:
            return
        if self.args.compile_body is None and (why := self._why_eager()):
            _log.info("the model's body is not compiled: %s", why)
            return
        try:
            self.compiled = CompiledBody(self.model, training=True, required=bool(self.args.compile_body))
        except CannotCompile as error:
            raise RuntimeError(f"compile_body=True, but {error}") from error

    def _why_eager(self) -> str | None:
        """Why this run does not compile the body of itself, None where it does."""
        if lacking := "; ".join(f"it needs {need}, got {got}" for need, got in obstacles(self)):
            return lacking
        # the backward triples the time of compiling and does not double what is saved (benchmarks/LOG.md)
        forwards = self.state.max_steps * self.args.gradient_accumulation_steps // 2
        tokens = self.args.rows_per_forward * (longest_sample(self.train_dataset) or _LENGTH)
        return why_it_does_not_pay(self.model, forwards, tokens, self.args.device)


def obstacles(trainer: transformers.Trainer) -> Iterator[tuple[str, str]]:
    """Each condition of a compiled body that the run does not meet, with what the run has instead."""
    kind = trainer.accelerator.distributed_type
    if missing := why_not_compile(trainer.args.device):
        yield "a compiler", missing
    if kind not in _WHOLE:
        yield "the whole model in each process", kind.value
    if trainer.args.gradient_checkpointing:
        # a layer that runs again drew other dropout masks (transformers 4.57), so gradients were wrong
        yield "no gradient checkpointing", "gradient_checkpointing=True"
    if trainer.is_model_parallel:
        yield "the model on one device", "a model on several"
    if (backend := trainer.accelerator.state.dynamo_plugin.backend.value) not in ("NO", "no"):
        yield "a model that accelerate does not compile", f"accelerate's dynamo_backend {backend.lower()}"
    if compiled := why_compiled_already(trainer.model):
        yield "a model that is not compiled", compiled
