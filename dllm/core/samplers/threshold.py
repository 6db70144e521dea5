"""The threshold sampler (Fast-dLLM without a cache), approximate: a step commits all tokens of high probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm.core.samplers.base import BaseSampler
from dllm.core.samplers.config import BaseSamplerConfig, check_threshold_and_factor
from dllm.core.samplers.layout import Span


@dataclass
class ThresholdSamplerConfig(BaseSamplerConfig):
    """Settings of :class:`ThresholdSampler` besides those of :class:`BaseSamplerConfig`; exactly one of these is given.

    threshold: commit every proposal of at least this probability.
    factor: f; commit the r most probable proposals for the largest r with c_r >= 1 - f / (r + 1).
    """

    block_size: int | None = 32
    threshold: float | None = 0.9
    factor: float | None = None

    def check(self) -> None:
        """See :meth:`BaseSamplerConfig.check`."""
        super().check()
        if (self.threshold is None) == (self.factor is None):
            raise ValueError(f"expected threshold or factor, got {self.threshold} and {self.factor}")
        check_threshold_and_factor(self.threshold, self.factor)


class ThresholdSampler(BaseSampler):
    """Approximate sampler, block by block: a step commits every proposal of high probability, and at least one.

    Tokens of one step are drawn independently of each other, though they may depend on each other: fewer forward passes
    mean a larger error. `benchmarks/quality.py` measures accuracy against the number of forward passes.

    Source: Fast-dLLM (arXiv:2505.22618), its parallel decoding without a cache.
    """

    config_class = ThresholdSamplerConfig
    approximate = True

    def amounts(self, config: ThresholdSamplerConfig, span: Span) -> Sequence[int]:
        """At least one token at each step."""
        return [1] * span.masks

    def policy(self, config: ThresholdSamplerConfig) -> dict[str, Any]:
        """Commit all that reaches the threshold."""
        return {"confidence": "probability", "threshold": config.threshold, "factor": config.factor}
