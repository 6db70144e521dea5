"""DiffusionGemmaTrainerConfig: the arguments of a training run by uniform diffusion."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from dllm.core.trainers.config import MDLMConfig, check_fixed

CANVAS_WEIGHT_TYPES = ("uniform", "reweighted")
LOSS_POSITIONS = ("all", "corrupted")


@dataclass
class DiffusionGemmaTrainerConfig(MDLMConfig):
    """Arguments of :class:`~dllm.core.trainers.diffusion_gemma.DiffusionGemmaTrainer`: those of
    :class:`~dllm.core.trainers.config.MDLMConfig` that apply, and the fields below. The defaults are those of the
    published recipe (google-deepmind/gemma, and transformers' TRL after it).

    Raises:
        TypeError, ValueError: as the parent class; a field is outside its range; one that does not apply differs from
            its default.

    Example:
        >>> DiffusionGemmaTrainerConfig(output_dir="out", report_to="none").encoder_loss_weight
        1.0
    """

    time_epsilon: float = field(default=1e-4, metadata={"help": "The smallest diffusion time t."})
    time_max: float = field(default=1 - 1e-4, metadata={"help": "The largest diffusion time t."})
    loss_weight_type: str = field(default="uniform", metadata={"help": "uniform: weight 1; reweighted: 1 / (1 - t)."})
    loss_positions: str = field(
        default="all", metadata={"help": "Positions of a canvas that have a loss: all, or corrupted."}
    )
    encoder_loss_weight: float = field(
        default=1.0, metadata={"help": "Weight of the next-token loss of the clean text; 0 leaves it out."}
    )
    self_conditioning: float = field(
        default=0.5, metadata={"help": "The probability that a sample is told what a first pass expects."}
    )
    freeze_router: bool = field(default=True, metadata={"help": "Keep the routers of the experts as they are."})
    cuda_graph: bool | None = field(default=False, metadata={"help": "False: samples differ in what they run."})
    compile_body: bool | None = field(default=False, metadata={"help": "False: encoder and decoder run in one step."})

    refused_configs: ClassVar[tuple[str, ...]] = ("zero3", "fsdp", "fsdp2")  # encoder and decoder share weights

    def __post_init__(self):
        if self.loss_positions not in LOSS_POSITIONS:
            raise ValueError(f"loss_positions must be one of {', '.join(LOSS_POSITIONS)}, got {self.loss_positions!r}")
        if not 0 <= self.encoder_loss_weight < math.inf:
            raise ValueError(f"encoder_loss_weight must be at least 0 and finite, got {self.encoder_loss_weight}")
        if not 0 <= self.self_conditioning <= 1:
            raise ValueError(f"self_conditioning must lie in [0, 1], got {self.self_conditioning}")
        super().__post_init__()
        check_fixed(self, dict(right_shift_logits=None, cuda_graph=False, compile_body=False), "uniform diffusion")
        if self.loss_weight_type == "reweighted" and self.time_max == 1:
            raise ValueError("time_max must be below 1 for weights of 1 / (1 - t), got 1")
        if (self.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            raise ValueError(
                "gradient_checkpointing_kwargs must have use_reentrant False: a reentrant checkpoint gives the encoder "
                "no gradient through what the decoder reads of it"
            )

    def _check_weight_type(self) -> None:
        if self.loss_weight_type not in CANVAS_WEIGHT_TYPES:
            known = ", ".join(CANVAS_WEIGHT_TYPES)
            raise ValueError(f"loss_weight_type must be one of {known}, got {self.loss_weight_type!r}")
