"""EditFlowSamplerConfig: the settings of the sampler of Edit Flows."""

from __future__ import annotations

from dataclasses import dataclass

from dllm.core.samplers.config import at_least, true_or_false
from dllm_kernels import _checks


@dataclass
class EditFlowSamplerConfig:
    """Settings of :class:`EditFlowSampler`. The seed is an argument of the call.

    return_dict: return a :class:`BaseSamplerOutput` with histories and stats instead of the texts alone.
    mask_length: masks behind a prompt, with which an answer begins. 0: nothing, as models that were trained on
        `x0_sampler="empty"` begin.
    tau: size of a step in time, at least 1e-6; there are ceil(1 / tau) of them, from t = 0 on.
    time_epsilon: no step begins at a time of 1 - time_epsilon or more.
    temperature: T of the tokens; 0 takes the most probable one.
    edit_prompt: edit the prompt, too, apart from its first token.
    max_w: the largest weight of a step. None, unlike in training: there it bounds the loss of single samples, which
        changes no minimum, and here it would leave edits undone (of the linear schedule 1.6 % with a bound of 20).
    min_edits: a text is finished when fewer edits than this are expected in all steps that are left.
    max_length: the most tokens of a text; None: as many as the model has positions, if they end.
    suppress_tokens: never put in.
    impl: kernels: "auto", "reference", "triton" or "cpu"; an explicit one never falls back.
    compile_body: the model's body through torch.compile: None where that works and pays for the number of forwards,
        True required, False never.
    """

    return_dict: bool = False
    mask_length: int = 128
    tau: float = 0.01
    time_epsilon: float = 1e-3
    temperature: float = 0.0
    edit_prompt: bool = False
    max_w: float | None = None
    min_edits: float = 1e-3
    max_length: int | None = None
    suppress_tokens: list[int] | None = None
    impl: str = "auto"
    compile_body: bool | None = None

    @property
    def max_new_tokens(self) -> int:
        """The tokens that an answer begins with, under the name of other samplers."""
        return self.mask_length

    def check(self) -> None:
        """Check the settings, before anything runs.

        Raises:
            TypeError, ValueError: a setting breaks a rule.
        """
        at_least(0, "mask_length", self.mask_length)
        if self.max_length is not None:
            at_least(1, "max_length", self.max_length)
        for name in ("temperature", "min_edits"):
            _checks.finite_at_least_zero(name, getattr(self, name))
        for name in ("return_dict", "edit_prompt"):
            true_or_false(name, getattr(self, name))
        if self.compile_body is not None:
            true_or_false("compile_body", self.compile_body)
        if not 1e-6 <= _checks.number("tau", self.tau) <= 1:
            raise ValueError(f"tau must lie in [1e-6, 1], got {self.tau}")
        if not 0 < _checks.number("time_epsilon", self.time_epsilon) < 1:
            raise ValueError(f"time_epsilon must lie between 0 and 1, got {self.time_epsilon}")
        if self.max_w is not None and not _checks.finite_at_least_zero("max_w", self.max_w) > 0:
            raise ValueError(f"max_w must be above 0, got {self.max_w}")
