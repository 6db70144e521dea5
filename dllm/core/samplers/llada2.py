"""The sampler of LLaDA 2.0, approximate: a threshold, and a schedule as the minimum."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dllm.core.samplers.base import BaseSampler
from dllm.core.samplers.config import BaseSamplerConfig, at_least, check_filters, one_of, true_or_false
from dllm.core.samplers.layout import Span
from dllm.core.samplers.schedules import check_steps, even_counts
from dllm.fast.model import block_size_of
from dllm_kernels import _checks


@dataclass
class LLaDA2SamplerConfig(BaseSamplerConfig):
    """Settings of :class:`LLaDA2Sampler` besides those of :class:`BaseSamplerConfig`.

    steps: denoising steps of each block, at most.
    threshold: commit every proposal of more than this probability.
    blocks_from: where the first block begins. "row": at column 0, so that the block in which the prompt ends holds a
        part of the prompt, as published. "prompt": at the prompt's end, as in the other samplers.
    cache: True for models trained to attend to no later block: attention is restricted so, and the keys and values of
        finished blocks are kept. See :class:`dllm.core.samplers.BD3LMSampler` for what the model must support. False
        for other models: every step runs the whole canvas, and every position attends to all of it. None: True if
        the model's configuration says that it attends by blocks, as that of LLaDA 2 does, else False.
    top_k, top_p: tokens that may be proposed: the top_k most probable ones, and of these those with at most a share
        top_p of their mass before them; None is off, and so is a top_p of 1.
    tempered: the confidence is the probability after temperature and filters, as in dLLM 0.1; otherwise softmax of the
        logits.
    minimal_topk: a step commits at least this many tokens on average: `steps` is at most
        max_new_tokens // minimal_topk.
    """

    block_size: int | None = 32
    steps: int = 32
    threshold: float = 0.95
    blocks_from: str = "row"
    cache: bool | None = None
    top_k: int | None = None
    top_p: float | None = None
    tempered: bool = False
    minimal_topk: int = 1

    steps_of: ClassVar[str] = "block"

    def check(self) -> None:
        """See :meth:`BaseSamplerConfig.check`."""
        super().check()
        at_least(1, "steps", self.steps)
        _checks.finite_at_least_zero("threshold", self.threshold)
        one_of(("row", "prompt"), "blocks_from", self.blocks_from)
        check_filters(self.top_k, self.top_p)
        true_or_false("tempered", self.tempered)
        at_least(1, "minimal_topk", self.minimal_topk)
        if self.cache is not None:
            true_or_false("cache", self.cache)
        if self.cache and self.block_size is None:
            raise ValueError(
                "block_size must be a number beside a cache, since blocks are the unit of attention; got None"
            )


class LLaDA2Sampler(BaseSampler):
    """Approximate sampler of LLaDA 2.0, block by block.

    A step commits every proposal above the threshold, and at least the number that the schedule gives, the most
    probable first. The schedule commits m // S tokens at a step and one more at the first m mod S steps, where m is the
    number of masks in the block and S is `steps`.

    The last block ends with the row. (The published program runs the last block at full length and cuts it afterwards.)

    Source: `generate` of LLaDA 2.0 (its model card).
    """

    config_class = LLaDA2SamplerConfig
    approximate = True

    def _settings(self, config: BaseSamplerConfig | None, overrides: dict[str, Any]) -> BaseSamplerConfig:
        """The checked settings, with `cache` as the model attends if it is None."""
        config = super()._settings(config, overrides)
        if config.cache is None:
            config = dataclasses.replace(config, cache=block_size_of(self.model) is not None)
            config.check()
        return config

    def amounts(self, config: LLaDA2SamplerConfig, span: Span) -> Sequence[int]:
        """The least number of tokens to commit at each step."""
        steps = config.steps
        if config.minimal_topk > 1 and config.max_new_tokens is not None:
            steps = min(steps, max(1, config.max_new_tokens // config.minimal_topk))
        counts = even_counts(span.masks, steps)
        return counts + [0] * (check_steps(steps) - len(counts))

    def first_column(self, config: LLaDA2SamplerConfig, given: int) -> int:
        """The column of the first block: a multiple of block_size, or the prompt's end."""
        if config.blocks_from == "prompt" or config.block_size is None:
            return given
        return given // config.block_size * config.block_size

    def policy(self, config: LLaDA2SamplerConfig) -> dict[str, Any]:
        """Commit above the threshold. The kernel's own threshold is inclusive, so it is the next float32."""
        # a threshold above 1 is the same as 1: no probability exceeds it
        rule = {"confidence": "probability", "threshold": _next_float32(min(config.threshold, 1.0))}
        top_p = None if config.top_p == 1 else config.top_p
        rule |= {"tempered": config.tempered, "top_k": config.top_k, "top_p": top_p, "top_k_first": True}
        if not config.cache:
            return rule
        return rule | {"block_causal": config.block_size, "cache": "block"}


def _next_float32(x: float) -> float:
    """The smallest float32 number above x."""
    return float(torch.nextafter(torch.tensor(x, dtype=torch.float32), torch.tensor(math.inf)))
