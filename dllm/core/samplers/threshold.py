"""Approximate: several tokens a step, wherever the model is sure enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm.core.samplers.base import BaseSampler
from dllm.core.samplers.config import BaseSamplerConfig
from dllm.core.samplers.layout import Span
from dllm_kernels import _checks


@dataclass
class ThresholdSamplerConfig(BaseSamplerConfig):
    """Settings of :class:`ThresholdSampler` besides those of :class:`BaseSamplerConfig`; exactly one of these.

    threshold: commit what has at least this probability.
    factor: f, commit the longest run of the surest r with c_r >= 1 - f / (r + 1).
    """

    block_size: int | None = 32
    threshold: float | None = 0.9
    factor: float | None = None

    def check(self) -> None:
        """See :meth:`BaseSamplerConfig.check`."""
        super().check()
        if (self.threshold is None) == (self.factor is None):
            raise ValueError(f"expected threshold or factor, got {self.threshold} and {self.factor}")
        if self.threshold is not None:
            _checks.finite_at_least_zero("threshold", self.threshold)
        if self.factor is not None and not _checks.finite_at_least_zero("factor", self.factor) > 0:
            raise ValueError(f"factor must be above 0, got {self.factor}")


class ThresholdSampler(BaseSampler):
    """Approximate. Block by block, each step commits every proposal of high probability, and at least the surest.

    Tokens committed in one step are drawn as if they did not depend on each other: the fewer forward passes, the more
    of them that do. What it costs in right answers is measured (`benchmarks/quality.py`).

    Source: Fast-dLLM (arXiv:2505.22618), its parallel decoding without a cache.
    """

    config_class = ThresholdSamplerConfig
    approximate = True

    def amounts(self, config: ThresholdSamplerConfig, span: Span) -> Sequence[int]:
        """At least one at each step."""
        return [1] * span.masks

    def policy(self, config: ThresholdSamplerConfig) -> dict[str, Any]:
        """Everything above the bar."""
        return {"confidence": "probability", "threshold": config.threshold, "factor": config.factor}
