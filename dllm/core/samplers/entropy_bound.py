"""The entropy-bounded sampler (EB-Sampler), approximate: a step commits as many tokens as their entropy allows."""

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

    gamma: bound of the summed entropy of a step, in nats; below 65536 or infinite.
    """

    block_size: int | None = 32
    gamma: float = 0.1

    def check(self) -> None:
        """See :meth:`BaseSamplerConfig.check`."""
        super().check()
        if not (0 <= _checks.number("gamma", self.gamma) < COST_CAP or self.gamma == math.inf):
            raise ValueError(f"gamma must be infinite or from 0 to below {COST_CAP:.0f}, got {self.gamma}")


class EntropyBoundSampler(BaseSampler):
    """Approximate sampler, block by block: a step commits positions in order of rising entropy.

    It commits the first position, then each further one as long as the summed entropy of those before it is at most
    gamma. Their entropies bound their mutual information, and so the error of drawing them independently.

    Source: EB-Sampler (arXiv:2505.24857).
    """

    config_class = EntropyBoundSamplerConfig
    approximate = True

    def amounts(self, config: EntropyBoundSamplerConfig, span: Span) -> Sequence[int]:
        """At least one token at each step."""
        return [1] * span.masks

    def policy(self, config: EntropyBoundSamplerConfig) -> dict[str, Any]:
        """Rank by entropy, up to a sum of gamma."""
        return {"confidence": "neg_entropy", "budget": config.gamma}
