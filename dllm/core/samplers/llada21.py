"""Approximate: LLaDA 2.1's rule, which also replaces what it has committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm.core.samplers.config import at_least
from dllm.core.samplers.layout import Span
from dllm.core.samplers.llada2 import LLaDA2Sampler, LLaDA2SamplerConfig
from dllm_kernels import _checks


@dataclass
class LLaDA21SamplerConfig(LLaDA2SamplerConfig):
    """Settings of :class:`LLaDA21Sampler` besides those of :class:`LLaDA2SamplerConfig`.

    edit_threshold: replace a committed token of the block by a proposal of more than this probability.
    edit_steps: steps that a block without masks takes at most, while they replace something.
    stop_at_eos: a row is finished at the end of the block in which the tokenizer's EOS has appeared.
    """

    edit_threshold: float = 0.9
    edit_steps: int = 16

    def check(self) -> None:
        """See :meth:`BaseSamplerConfig.check`."""
        super().check()
        _checks.finite_at_least_zero("edit_threshold", self.edit_threshold)
        at_least(1, "edit_steps", self.edit_steps)


class LLaDA21Sampler(LLaDA2Sampler):
    """Approximate. As :class:`LLaDA2Sampler`, and a step also replaces tokens of the block that earlier steps have
    committed: where the proposal is another token than the one that stands there, not the mask, and more probable than
    the threshold. Proposals for masks and for tokens are of the same forward.

    A block is over with the first step that finds no mask in it and replaces nothing, or after `edit_steps` steps that
    find no mask. What was given is never replaced.

    Source: `generate` of LLaDA 2.1 (its model card).
    """

    config_class = LLaDA21SamplerConfig

    def amounts(self, config: LLaDA21SamplerConfig, span: Span) -> Sequence[int]:
        """At least so many at each step: none once the schedule is through."""
        return [*super().amounts(config, span), *[0] * config.edit_steps]

    def policy(self, config: LLaDA21SamplerConfig) -> dict[str, Any]:
        """As its parent's, with edits."""
        return super().policy(config) | {
            "edit_threshold": config.edit_threshold,
            "edit_steps": config.edit_steps,
            "stops_between_blocks": True,
        }
