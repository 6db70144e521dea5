"""The sampler of Fast-dLLM for Dream, approximate: Dream's proposals with cached keys and values, and a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm.core.samplers.config import check_threshold_and_factor, one_of
from dllm.core.samplers.dream import DreamSampler, DreamSamplerConfig
from dllm.core.samplers.layout import Span


@dataclass
class FastdLLMDreamSamplerConfig(DreamSamplerConfig):
    """Settings of :class:`FastdLLMDreamSampler` besides those of :class:`dllm.core.samplers.DreamSamplerConfig`.

    threshold: commit every proposal of at least this probability, and at least the most probable one, in place of the
        number that the schedule gives; `alg` then ranks nothing.
    use_cache: "prefix", "dual" or None, as `cache` of :class:`dllm.core.samplers.FastDLLMSamplerConfig`.
    """

    block_size: int | None = 32
    threshold: float | None = None
    use_cache: str | None = None

    def check(self) -> None:
        """See :meth:`dllm.core.samplers.BaseSamplerConfig.check`."""
        super().check()
        check_threshold_and_factor(self.threshold, None)
        if self.use_cache is not None:
            one_of(("prefix", "dual"), "use_cache", self.use_cache)


class FastdLLMDreamSampler(DreamSampler):
    """Approximate sampler: Dream's proposals, with the cache and the threshold of Fast-dLLM.

    Source: Fast-dLLM (arXiv:2505.22618), Dream (arXiv:2508.15487).

    Example:
        >>> FastdLLMDreamSamplerConfig().block_size, FastdLLMDreamSamplerConfig().alg
        (32, 'origin')
    """

    config_class = FastdLLMDreamSamplerConfig
    approximate = True

    def amounts(self, config: FastdLLMDreamSamplerConfig, span: Span) -> Sequence[float]:
        """At least one token at each step with a threshold, else what the schedule gives."""
        return super().amounts(config, span) if config.threshold is None else [1] * span.masks

    def policy(self, config: FastdLLMDreamSamplerConfig) -> dict[str, Any]:
        """The policy of Dream, with the cache and the threshold."""
        rule = super().policy(config)
        if config.threshold is not None:
            ranked = {"confidence": "probability", "order_temperature": 0.0, "rule": "count"}
            rule |= ranked | {"threshold": config.threshold}
        return rule if config.use_cache is None else rule | {"cache": config.use_cache}
