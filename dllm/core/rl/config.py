"""DiffuGRPOConfig: the arguments of a run of diffu-GRPO."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from dllm.core.rl.prompts import RepeatedPrompts
from dllm.core.samplers.schedules import check_steps
from dllm.core.trainers.config import MDLMConfig, check_fixed

# The normalisation of the loss that each name means.
LOSS_TYPES = {"bnpo": "token", "grpo": "sequence", "dr_grpo": "batch"}


@dataclass
class DiffuGRPOConfig(MDLMConfig):
    """Arguments of :class:`~dllm.core.rl.trainer.DiffuGRPOTrainer`: those of transformers, and the fields below.

    A row of a batch is a completion. So `per_device_train_batch_size` times `gradient_accumulation_steps` times the
    number of processes, the completions of an optimizer step, must be a multiple of `num_generations`.

    Raises:
        TypeError, ValueError: as the parent class; a field is outside its range, or one that does not apply differs
            from its default.

    Example:
        >>> config = DiffuGRPOConfig(output_dir="out", report_to="none", num_generations=4)
        >>> config.learning_rate, config.completions_per_step
        (1e-06, 8)
    """

    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=3, metadata={"help": "Passes over the prompts."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Completions per device and forward pass."})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Prompts per device answered at once."})
    num_generations: int = field(default=8, metadata={"help": "Completions of a prompt, which are its group."})
    num_iterations: int = field(default=1, metadata={"help": "Optimizer steps on the same completions."})
    max_prompt_length: int | None = field(
        default=512, metadata={"help": "Prompts with more tokens are left out; None: none are."}
    )
    max_completion_length: int = field(default=256, metadata={"help": "Tokens of a completion."})
    steps: int = field(default=64, metadata={"help": "Denoising steps of a completion."})
    block_size: int = field(default=64, metadata={"help": "Tokens of a block, which is filled before the next."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the completions."})
    eval_temperature: float = field(default=0.0, metadata={"help": "The same in evaluation."})
    remasking: str = field(default="low_confidence", metadata={"help": "What is committed: low_confidence or random."})
    cfg_scale: float = field(default=0.0, metadata={"help": "Guidance of the sampler and of the probabilities."})
    p_mask_prompt: float = field(
        default=0.3, metadata={"help": "Probability that a token of the prompt is masked for the probabilities."}
    )
    generation_batch_size: int | None = field(
        default=None, metadata={"help": "Completions generated at once by a process; None: all of a step."}
    )
    epsilon: float = field(default=0.2, metadata={"help": "The ratio of probabilities is clipped at 1 - epsilon."})
    epsilon_high: float | None = field(default=None, metadata={"help": "And at 1 + epsilon_high; None: epsilon."})
    beta: float = field(default=0.0, metadata={"help": "Weight of the divergence from the reference model."})
    scale_rewards: bool = field(default=False, metadata={"help": "Divide advantages by the group's deviation."})
    reward_weights: list[float] | None = field(default=None, metadata={"help": "Of the rewards; None: 1 each."})
    loss_type: str = field(
        default="bnpo",
        metadata={"help": "Mean over: tokens (bnpo), completions (grpo), or max_completion_length of each (dr_grpo)."},
    )
    sync_ref_model: bool = field(default=False, metadata={"help": "The reference model follows the trained one."})
    ref_model_mixup_alpha: float = field(default=0.6, metadata={"help": "Share of the trained model in it."})
    ref_model_sync_steps: int = field(default=512, metadata={"help": "Optimizer steps between two such updates."})
    log_completions: bool = field(default=False, metadata={"help": "Print a completion at every log entry."})
    metric_for_best_model: str | None = field(
        default="reward", metadata={"help": "What the best checkpoint has most of."}
    )
    cuda_graph: bool | None = field(default=False, metadata={"help": "False: the loss follows from the forward."})
    compile_body: bool | None = field(
        default=False, metadata={"help": "False: two policies are compared, and both must be rounded alike."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "False: rewards read the columns."})

    row: ClassVar[str] = "completion"
    samples_while_training: ClassVar[bool] = True
    refused_configs: ClassVar[tuple[str, ...]] = ("zero3",)

    def __post_init__(self):
        fixed = dict(
            loss_weight_type="scheduler",
            time_epsilon=1e-3,
            time_max=1.0,
            antithetic_time=False,
            cuda_graph=False,
            compile_body=False,
            remove_unused_columns=False,
        )
        check_fixed(self, fixed, "diffu-GRPO")
        self._check_numbers_of_grpo()
        for name, known in {"loss_type": LOSS_TYPES, "remasking": ("low_confidence", "random")}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.loss_norm_type not in ("token", LOSS_TYPES[self.loss_type]):  # token: not given
            raise ValueError(
                f"loss_type names the mean, so loss_norm_type must not be given, got {self.loss_norm_type}"
            )
        self.loss_norm_type = LOSS_TYPES[self.loss_type]
        super().__post_init__()
        if self.completions_per_step % self.num_generations:
            raise ValueError(
                "per_device_train_batch_size x gradient_accumulation_steps x processes must be a multiple of "
                f"num_generations {self.num_generations}, got {self.completions_per_step}"
            )

    @property
    def completions_per_step(self) -> int:
        """Completions of an optimizer step, all processes together."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def keeps_reference(self) -> bool:
        """Whether there is a reference model."""
        return self.beta > 0

    @property
    def rows_per_forward(self) -> int:
        """Rows of a process in a forward pass: with guidance each completion is there twice."""
        return self.per_device_train_batch_size * (2 if self.cfg_scale else 1)

    def rows_of_epoch(self, samples: int, processes: int) -> int:
        """Completions in a pass over so many prompts, each iteration on them counted.

        Raises:
            ValueError: there are fewer prompts than a step takes.
        """
        per_step = self.per_device_train_batch_size * self.gradient_accumulation_steps * processes
        return len(
            RepeatedPrompts(samples, per_step // self.num_generations, self.num_generations, self.num_iterations)
        )

    def _check_numbers_of_grpo(self) -> None:
        least = dict(num_generations=2, num_iterations=1, max_completion_length=1, steps=1, block_size=1)
        least |= dict(ref_model_sync_steps=1, max_prompt_length=1, generation_batch_size=1)
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is None and name in ("max_prompt_length", "generation_batch_size"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
                raise ValueError(f"{name} must be an integer of at least {smallest}, got {value!r}")
        blocks = -(-self.max_completion_length // self.block_size)
        check_steps(-(-self.steps // blocks))
        for name in ("temperature", "eval_temperature", "cfg_scale", "beta", "epsilon_high"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        for name in ("epsilon", "p_mask_prompt", "ref_model_mixup_alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.temperature == 0:
            raise ValueError("temperature must be above 0, as the completions of a group would be equal, got 0")
        if self.sync_ref_model and not self.beta:
            raise ValueError("sync_ref_model needs a beta above 0, as there is no reference model without, got 0")
