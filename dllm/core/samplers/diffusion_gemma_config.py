"""DiffusionGemmaSamplerConfig: the settings of the sampler of DiffusionGemma."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from torch import nn

from dllm.core.samplers.config import at_least, true_or_false
from dllm_kernels import _checks
from dllm_kernels.transfer_tokens.api import COST_CAP


@dataclass
class DiffusionGemmaSamplerConfig:
    """Settings of :class:`DiffusionGemmaSampler`, under the names that transformers gives them, with its defaults. The
    seed is an argument of the call.

    return_dict: return a :class:`BaseSamplerOutput` with histories and stats instead of the canvases alone.
    max_new_tokens: the most tokens that a row generates. Canvases are whole; what exceeds this is cut off.
    max_denoising_steps: the most steps of a canvas, N.
    t_min, t_max: step s = 0 ... N - 1 draws at the temperature t_min + (t_max - t_min) (N - s) / N.
    entropy_bound: a step accepts positions in order of rising entropy, each as long as the entropies before it sum to
        at most this, in nats; above 0 and below 65536.
    stability_threshold: a canvas is over when its likeliest tokens have stayed the same for so many steps,
    confidence_threshold: and the mean entropy of its positions is below this, in nats.
    eos_token_ids: tokens that end a row; None: those of the model's generation_config, else the tokenizer's EOS and end
        of turn. What follows one in its canvas becomes padding.
    log_probs: also return log-probabilities of the generated tokens, log softmax(l), without a temperature.
    impl: kernels: "auto", "reference", "triton" or "cpu"; an explicit one never falls back.
    keep_histories: with `return_dict`, keep the canvas of every step.
    """

    return_dict: bool = False
    max_new_tokens: int = 256
    max_denoising_steps: int = 48
    t_min: float = 0.4
    t_max: float = 0.8
    entropy_bound: float = 0.1
    stability_threshold: int = 1
    confidence_threshold: float = 0.005
    eos_token_ids: list[int] | None = None
    log_probs: bool = False
    impl: str = "auto"
    keep_histories: bool = True

    # settings under the names that other samplers give them
    other_names: ClassVar[Mapping[str, str]] = MappingProxyType({"steps": "max_denoising_steps"})

    @classmethod
    def of(cls, model: nn.Module) -> DiffusionGemmaSamplerConfig:
        """The settings of a model's generation_config, and the defaults where it says nothing.

        Example:
            >>> DiffusionGemmaSamplerConfig.of(nn.Linear(1, 1)).max_denoising_steps
            48
        """
        stated, found = getattr(model, "generation_config", None), {}
        for name in (
            "max_new_tokens",
            "max_denoising_steps",
            "t_min",
            "t_max",
            "stability_threshold",
            "confidence_threshold",
        ):
            if getattr(stated, name, None) is not None:
                found[name] = getattr(stated, name)
        bound = getattr(getattr(stated, "sampler_config", None), "entropy_bound", None)
        return cls(**found | ({} if bound is None else {"entropy_bound": bound}))

    def with_length(self, max_new_tokens: int) -> DiffusionGemmaSamplerConfig:
        """These settings for another number of new tokens. A canvas has as many steps as before."""
        return dataclasses.replace(self, max_new_tokens=at_least(1, "max_new_tokens", max_new_tokens))

    def check(self) -> None:
        """Check the settings, before anything runs.

        Raises:
            TypeError, ValueError: a setting breaks a rule.
        """
        for name, least in (("max_new_tokens", 1), ("max_denoising_steps", 1), ("stability_threshold", 0)):
            at_least(least, name, getattr(self, name))
        for name in ("return_dict", "log_probs", "keep_histories"):
            true_or_false(name, getattr(self, name))
        for name in ("t_min", "t_max", "confidence_threshold"):
            _checks.finite_at_least_zero(name, getattr(self, name))
        if not self.t_max > 0 or self.t_min > self.t_max:
            raise ValueError(
                f"t_max must be above 0 and at least t_min, got t_min {self.t_min} and t_max {self.t_max}: every step "
                "draws, and what is emitted are the likeliest tokens in any case"
            )
        if not 0 < _checks.number("entropy_bound", self.entropy_bound) < COST_CAP:
            raise ValueError(f"entropy_bound must be above 0 and below {COST_CAP:.0f}, got {self.entropy_bound}")
