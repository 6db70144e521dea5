"""LLaDA 2.1's sampler with the settings and defaults of dLLM 0.1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dllm.core import samplers
from dllm.core.samplers.config import at_least
from dllm.core.samplers.layout import Span
from dllm.pipelines.aliases import WithAliases
from dllm.pipelines.llada2.sampler import check_filters, filters


@dataclass
class LLaDA21SamplerConfig(samplers.LLaDA21SamplerConfig):
    """Settings of :class:`LLaDA21Sampler` besides those of :class:`dllm.core.samplers.LLaDA21SamplerConfig`.

    cache: attention by blocks, as these models are trained; 0.1 always attends so.
    num_to_transfer: the least number of tokens that a step commits while there are masks, in place of `steps`.
    top_k, top_p: as in :class:`dllm.pipelines.llada2.LLaDA2SamplerConfig`.
    editing_threshold: another name of `edit_threshold`.
    max_post_steps: another name of `edit_steps`.
    eos_early_stop: another name of `stop_at_eos`.
    """

    cache: bool = True
    num_to_transfer: int = 1
    top_k: int | None = None
    top_p: float | None = None
    editing_threshold: float | None = None
    max_post_steps: int | None = None
    eos_early_stop: bool | None = None

    def check(self) -> None:
        """See :meth:`dllm.core.samplers.BaseSamplerConfig.check`."""
        super().check()
        check_filters(self)
        at_least(1, "num_to_transfer", self.num_to_transfer)


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

    def policy(self, config: LLaDA21SamplerConfig) -> dict[str, Any]:
        """The policy of LLaDA 2.1, with temperature and filters before the confidence."""
        return super().policy(config) | filters(config)
