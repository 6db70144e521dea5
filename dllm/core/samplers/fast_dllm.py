"""Approximate: keys and values of a canvas that has changed since, and several tokens a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm.core.samplers.base import BaseSampler
from dllm.core.samplers.config import BaseSamplerConfig, at_least, one_of
from dllm.core.samplers.layout import Span
from dllm.core.samplers.schedules import even_counts
from dllm_kernels import _checks


@dataclass
class FastDLLMSamplerConfig(BaseSamplerConfig):
    """Settings of :class:`FastDLLMSampler` besides those of :class:`BaseSamplerConfig`. At most one of threshold and
    factor is given; with neither a step commits as many as the schedule says.

    cache: "prefix", "dual" or None.
    threshold: commit what has at least this probability, and at least the surest.
    factor: f, commit the longest run of the surest r with c_r >= 1 - f / (r + 1), and at least the surest.
    steps: of the schedule m // S (and one more at the first m mod S steps), S = steps / blocks rounded up.
    """

    block_size: int | None = 32
    cache: str | None = "dual"
    threshold: float | None = 0.9
    factor: float | None = None
    steps: int = 128

    def check(self) -> None:
        """See :meth:`BaseSamplerConfig.check`."""
        super().check()
        if self.cache is not None:
            one_of(("prefix", "dual"), "cache", self.cache)
        at_least(1, "steps", self.steps)
        if self.threshold is not None and self.factor is not None:
            raise ValueError(f"expected at most one of threshold and factor, got {self.threshold} and {self.factor}")
        if self.threshold is not None:
            _checks.finite_at_least_zero("threshold", self.threshold)
        if self.factor is not None and not _checks.finite_at_least_zero("factor", self.factor) > 0:
            raise ValueError(f"factor must be above 0, got {self.factor}")

    @property
    def scheduled(self) -> bool:
        """Whether a schedule says how many tokens a step commits."""
        return self.threshold is None and self.factor is None


class FastDLLMSampler(BaseSampler):
    """Approximate. Block by block; the first step of a block runs the canvas and keeps all keys and values; later steps
    run, and keep anew,

    - "prefix": the block and what follows it; what precedes the block is read as it was at the block's first step;
    - "dual": the block alone; all else is read as it was then, later masks too;
    - None: the canvas; then only the rule is approximate.

    A later step of a block of W in a canvas of L columns costs W / L ("dual") of one that runs the canvas. What has
    been committed since the block's first step is not seen by the keys and values that are kept, though by all that
    runs. Rows of a batch begin blocks at steps of their own. Under a right shift the first token of
    a block is read at the position before it, which does not run in later steps: those read what it said in the first.

    The first step of a block commits by the same rule as the others. (The program published for Dream lets it commit
    the block's first token alone, by which the other steps need nothing of the position before.)

    Args:
        model: as :class:`BD3LMSampler` takes it, but trained to see all positions.

    Raises:
        ValueError: from `sample` and `infill`, beside those of the settings: the model keeps no cache, or has a
            sliding window that is narrower than a row.

    Source: Fast-dLLM (arXiv:2505.22618).

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from dllm.models import bidirectional
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = bidirectional(LlamaForCausalLM(LlamaConfig(**size)).eval())
        >>> sampler = FastDLLMSampler(model, SimpleNamespace(mask_token_id=3, eos_token_id=2))
        >>> sampler.sample([[5, 6], [7]], max_new_tokens=4, block_size=2, cache="prefix").shape
        torch.Size([2, 6])
    """

    config_class = FastDLLMSamplerConfig
    approximate = True

    def amounts(self, config: FastDLLMSamplerConfig, span: Span) -> Sequence[int]:
        """At least so many at each step: with a threshold or factor one, else as many as the schedule says."""
        if not config.scheduled:
            return [1] * span.masks
        return even_counts(span.masks, -(-config.steps // span.blocks))

    def policy(self, config: FastDLLMSamplerConfig) -> dict[str, Any]:
        """Rank by probability; keep what the cache keeps."""
        rule = {"threshold": config.threshold, "factor": config.factor, "confidence": "probability"}
        if config.cache is None:
            return rule
        return rule | {"cache": config.cache}
