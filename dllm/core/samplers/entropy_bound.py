"""Approximate: as many tokens a step as their summed entropy allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm.core.samplers.base import BaseSampler
from dllm.core.samplers.config import BaseSamplerConfig
from dllm.core.samplers.layout import Span
from dllm_kernels import _checks
from dllm_kernels.transfer_tokens.api import COST_CAP


@dataclass
class EntropyBoundSamplerConfig(BaseSamplerConfig):
    """Settings of :class:`EntropyBoundSampler` besides those of :class:`BaseSamplerConfig`.

    gamma: nats that a step may spend, below 65536 or infinite.
    """

    block_size: int | None = 32
    gamma: float = 0.1

    def check(self) -> None:
        """See :meth:`BaseSamplerConfig.check`."""
        super().check()
        if not (0 <= _checks.number("gamma", self.gamma) < COST_CAP or self.gamma == math.inf):
            raise ValueError(f"gamma must be infinite or from 0 to below {COST_CAP:.0f}, got {self.gamma}")


class EntropyBoundSampler(BaseSampler):
    """Approximate. Block by block, in order of rising entropy, each step commits the first position and goes on while
    the summed entropy of those before is at most gamma.

    The entropies of the positions bound how much they can tell about each other, and so the error of drawing them as if
    they were independent.

    Source: EB-Sampler (arXiv:2505.24857).
    """

    config_class = EntropyBoundSamplerConfig
    approximate = True

    def amounts(self, config: EntropyBoundSamplerConfig, span: Span) -> Sequence[int]:
        """At least one at each step."""
        return [1] * span.masks

    def policy(self, config: EntropyBoundSamplerConfig) -> dict[str, Any]:
        """Spend gamma nats a step."""
        return {"confidence": "neg_entropy", "budget": config.gamma}
