"""MDLMConfig: the arguments of a training run by masked diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dllm.configs import TrainingArguments
from dllm.fast.capture import check_cuda_graph
from dllm.fast.compiled.decision import check_compile_body

WEIGHT_TYPES = ("scheduler", "uniform")
NORM_TYPES = ("token", "sequence", "batch")


@dataclass
class MDLMConfig(TrainingArguments):
    """Arguments of :class:`~dllm.core.trainers.mdlm.MDLMTrainer`: those of transformers' Trainer, and the fields below.

    transformers' `torch_compile=True` becomes `compile_body=True`: the body is compiled, the loss stays in the LM head.

    Raises:
        TypeError: `cuda_graph` or `compile_body` is neither None nor a bool.
        RuntimeError: `compile_body=True`, and this machine cannot compile.
        ValueError: a field is outside its range, or an argument of transformers does not apply to a diffusion loss.

    Example:
        >>> config = MDLMConfig(output_dir="out", report_to="none", loss_norm_type="sequence")
        >>> config.loss_weight_type
        'scheduler'
    """

    time_epsilon: float = field(default=1e-3, metadata={"help": "The smallest diffusion time t."})
    time_max: float = field(default=1.0, metadata={"help": "The largest diffusion time t."})
    antithetic_time: bool = field(default=False, metadata={"help": "Spread the times of a batch evenly."})
    loss_weight_type: str = field(default="scheduler", metadata={"help": "scheduler: weight w(t); uniform: weight 1."})
    loss_norm_type: str = field(default="token", metadata={"help": "Mean over: token, sequence or batch."})
    right_shift_logits: bool | None = field(
        default=None,
        metadata={
            "help": "A token is predicted one position before it. Default: as the model's config says, else False."
        },
    )
    ema_decay: float | None = field(
        default=None, metadata={"help": "Keep an exponential moving average of the weights; MDLM uses 0.9999."}
    )
    cuda_graph: bool | None = field(
        default=None,
        metadata={"help": "Training steps as CUDA graphs. Default: where possible; True: required; False: never."},
    )
    compile_body: bool | None = field(
        default=None,
        metadata={"help": "The model's body by torch.compile. Default: where it pays; True: required; False: never."},
    )

    row: ClassVar[str] = "sample"  # what a row of a batch is
    keeps_reference: ClassVar[bool] = False  # whether the model as it was is kept beside the trained one
    samples_while_training: ClassVar[bool] = False  # for which every process needs the whole model
    refused_configs: ClassVar[tuple[str, ...]] = ()  # of scripts/accelerate_configs, by the trainer

    def __post_init__(self):
        check_cuda_graph(self.cuda_graph)
        self._take_over_torch_compile()
        if not 0 <= self.time_epsilon < self.time_max <= 1:
            raise ValueError(
                f"time_epsilon and time_max must satisfy 0 <= time_epsilon < time_max <= 1, "
                f"got {self.time_epsilon} and {self.time_max}"
            )
        self._check_weight_type()
        if self.loss_norm_type not in NORM_TYPES:
            raise ValueError(f"loss_norm_type must be one of {', '.join(NORM_TYPES)}, got {self.loss_norm_type!r}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and less than 1, got {self.ema_decay}")
        if self.ema_decay is not None and self.load_best_model_at_end:
            raise ValueError("load_best_model_at_end loads weights that are not averaged: leave ema_decay unset")
        if self.label_smoothing_factor:
            raise ValueError(f"label_smoothing_factor is no part of this loss, got {self.label_smoothing_factor}")
        super().__post_init__()
        check_compile_body(self.compile_body, self.device)
        if self.accelerator_config.dispatch_batches:
            raise ValueError(
                "dispatch_batches must not be True: a batch's masked tokens cannot be cut into equal shares"
            )
        self.accelerator_config.dispatch_batches = False

    def _take_over_torch_compile(self) -> None:
        """Turn transformers' arguments into `compile_body`. With them the whole model would be compiled, in two parts
        around the head, whose forward computes the loss, and the loss on a few tokens before the first step too."""
        ways = {"torch_compile_backend": "inductor", "torchdynamo": "inductor", "torch_compile_mode": "default"}
        given = {name: value for name in ways if (value := getattr(self, name)) is not None}
        for name, value in given.items():
            if value != ways[name]:
                raise ValueError(f"{name} must be {ways[name]}, as dllm compiles the body itself, got {value!r}")
        if not (self.torch_compile or given):
            return
        if self.compile_body is False:
            raise ValueError("compile_body=False and transformers' torch_compile exclude each other: give one")
        self.compile_body, self.torch_compile = True, False
        for name in given:
            setattr(self, name, None)

    @property
    def rows_per_forward(self) -> int:
        """Rows of a process in a forward pass."""
        return self.per_device_train_batch_size

    def rows_of_epoch(self, samples: int, processes: int) -> int:
        """Rows in a pass over so many samples of the data."""
        return samples

    def _check_weight_type(self) -> None:
        if self.loss_weight_type not in WEIGHT_TYPES:
            known = ", ".join(WEIGHT_TYPES)
            raise ValueError(f"loss_weight_type must be one of {known}, got {self.loss_weight_type!r}")


def check_fixed(config: MDLMConfig, fixed: Mapping[str, Any], objective: str) -> None:
    """Check that arguments which an objective has no use for keep their values.

    Args:
        config: of the run.
        fixed: the values by name.
        objective: its name, for the error.

    Raises:
        ValueError: one differs.

    Example:
        >>> check_fixed(MDLMConfig(output_dir="out", report_to="none"), {"time_max": 1.0}, "this objective")
    """
    for name, value in fixed.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name} must be {value} for {objective}, got {getattr(config, name)}")
