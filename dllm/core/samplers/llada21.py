"""The sampler of LLaDA 2.1, approximate: as LLaDA 2.0, and it also replaces committed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm.core.samplers.config import at_least
from dllm.core.samplers.layout import Span
from dllm.core.samplers.llada2 import LLaDA2Sampler, LLaDA2SamplerConfig
from dllm.core.samplers.schedules import check_steps
from dllm_kernels import _checks


@dataclass
class LLaDA21SamplerConfig(LLaDA2SamplerConfig):
    """Settings of :class:`LLaDA21Sampler` besides those of :class:`LLaDA2SamplerConfig`.

    edit_threshold: replace a committed token of the block by another proposal of more than this probability.
    edit_steps: the most steps of a block that has no masks left.
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
    """Approximate sampler of LLaDA 2.1: as :class:`LLaDA2Sampler`, and a step may replace tokens of its block.

    A token that an earlier step has committed is replaced if the proposal is another token, not the mask, and more
    probable than `edit_threshold`. Proposals for masks and for tokens come from the same forward. Given tokens are
    never replaced.

    A block ends with the first step that finds no mask and replaces nothing, or after `edit_steps` steps that find no
    mask.

    Source: `generate` of LLaDA 2.1 (its model card).
    """

    config_class = LLaDA21SamplerConfig

    def amounts(self, config: LLaDA21SamplerConfig, span: Span) -> Sequence[int]:
        """The least number of tokens to commit at each step; 0 in steps after the schedule's end."""
        return [*super().amounts(config, span), *[0] * check_steps(config.edit_steps)]

    def policy(self, config: LLaDA21SamplerConfig) -> dict[str, Any]:
        """The policy of :class:`LLaDA2Sampler`, with edits."""
        return super().policy(config) | {
            "edit_threshold": config.edit_threshold,
            "edit_steps": config.edit_steps,
            "stops_between_blocks": True,
        }
