"""LLaDA 2.1's sampler with the settings and defaults of dLLM 0.1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dllm.core import samplers
from dllm.core.samplers.config import at_least
from dllm.core.samplers.layout import Span
from dllm.pipelines.aliases import WithAliases


@dataclass
class LLaDA21SamplerConfig(samplers.LLaDA21SamplerConfig):
    """Settings of :class:`LLaDA21Sampler` besides those of :class:`dllm.core.samplers.LLaDA21SamplerConfig`.

    cache: attention by blocks, as these models are trained; 0.1 always attends so.
    tempered: the confidence of 0.1.
    num_to_transfer: the least number of tokens that a step commits while there are masks, in place of `steps` and
        `minimal_topk`.
    editing_threshold: another name of `edit_threshold`.
    max_post_steps: another name of `edit_steps`.
    eos_early_stop: another name of `stop_at_eos`.
    """

    cache: bool = True
    tempered: bool = True
    num_to_transfer: int = 1
    editing_threshold: float | None = None
    max_post_steps: int | None = None
    eos_early_stop: bool | None = None

    def check(self) -> None:
        """See :meth:`dllm.core.samplers.BaseSamplerConfig.check`."""
        super().check()
        at_least(1, "num_to_transfer", self.num_to_transfer)
        if self.minimal_topk != 1:
            raise ValueError(f"minimal_topk must be 1 beside num_to_transfer, got {self.minimal_topk}")


class LLaDA21Sampler(WithAliases, samplers.LLaDA21Sampler):
    """:class:`dllm.core.samplers.LLaDA21Sampler` with the settings of dLLM 0.1.

    The confidence is the probability after temperature and filters. Batches and prompts may have any size.

    Example:
        >>> LLaDA21SamplerConfig().edit_threshold, LLaDA21SamplerConfig().edit_steps
        (0.9, 16)
    """

    config_class = LLaDA21SamplerConfig
    aliases: ClassVar[dict[str, str]] = {
        "editing_threshold": "edit_threshold",
        "max_post_steps": "edit_steps",
        "eos_early_stop": "stop_at_eos",
    }

    def amounts(self, config: LLaDA21SamplerConfig, span: Span) -> Sequence[int]:
        """The least number of tokens to commit at each step; 0 in steps after the last mask."""
        full, rest = divmod(span.masks, config.num_to_transfer)
        return [config.num_to_transfer] * full + [rest] * bool(rest) + [0] * config.edit_steps
