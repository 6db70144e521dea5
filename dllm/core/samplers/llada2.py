"""Approximate: LLaDA 2.0's rule, a threshold beside a schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dllm.core.samplers.base import BaseSampler
from dllm.core.samplers.config import BaseSamplerConfig, at_least, one_of, true_or_false
from dllm.core.samplers.layout import Span
from dllm.core.samplers.schedules import even_counts
from dllm_kernels import _checks


@dataclass
class LLaDA2SamplerConfig(BaseSamplerConfig):
    """Settings of :class:`LLaDA2Sampler` besides those of :class:`BaseSamplerConfig`.

    steps: denoising steps of each block, at most.
    threshold: commit what has more than this probability.
    blocks_from: where blocks are counted from. "row": its first column (with 32 tokens columns 0 to 31, 32 to 63, ...),
        so that the block in which the prompt ends holds a part of it, as published. "prompt": the prompt's end, as in
        the other samplers.
    cache: for models that see no later block: no position sees one, and the keys and values of finished blocks are
        kept; see :class:`dllm.core.samplers.BD3LMSampler`, which also says what a model must be able to. False: every
        step runs the canvas, and every position sees all of it; for any model.
    """

    block_size: int | None = 32
    steps: int = 32
    threshold: float = 0.95
    blocks_from: str = "row"
    cache: bool = False

    def check(self) -> None:
        """See :meth:`BaseSamplerConfig.check`."""
        super().check()
        at_least(1, "steps", self.steps)
        _checks.finite_at_least_zero("threshold", self.threshold)
        one_of(("row", "prompt"), "blocks_from", self.blocks_from)
        true_or_false("cache", self.cache)
        if self.cache and self.block_size is None:
            raise ValueError(
                "block_size must be a number beside a cache, since blocks are what a position sees; got None"
            )


class LLaDA2Sampler(BaseSampler):
    """Approximate. Block by block, a step commits every proposal above the threshold if those are at least as many as
    the schedule m // S (and one more at the first m mod S steps) asks for, else as many of the surest as it asks for.

    m counts the masks of the block: in a block that holds a part of the prompt, those behind it. The last block ends
    with the row. (The published program runs the last block in its whole length, and cuts it afterwards.)

    Source: `generate` of LLaDA 2.0 (its model card).
    """

    config_class = LLaDA2SamplerConfig
    approximate = True

    def amounts(self, config: LLaDA2SamplerConfig, span: Span) -> Sequence[int]:
        """At least so many at each step."""
        counts = even_counts(span.masks, config.steps)
        return counts + [0] * (config.steps - len(counts))

    def first_column(self, config: LLaDA2SamplerConfig, given: int) -> int:
        """Where the first block begins in a row that generates: one that spans it all, with what it generates."""
        if config.blocks_from == "prompt" or config.block_size is None:
            return given
        return given // config.block_size * config.block_size

    def policy(self, config: LLaDA2SamplerConfig) -> dict[str, Any]:
        """Above the threshold: the kernel commits what is at least at its bar, so the bar is the next float32."""
        # nothing is more probable than 1
        rule = {"confidence": "probability", "threshold": _next_float32(min(config.threshold, 1.0))}
        if not config.cache:
            return rule
        return rule | {"block_causal": config.block_size, "cache": "block"}


def _next_float32(x: float) -> float:
    """The smallest float32 number above x."""
    return float(torch.nextafter(torch.tensor(x, dtype=torch.float32), torch.tensor(math.inf)))
