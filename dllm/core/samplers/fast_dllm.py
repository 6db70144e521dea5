"""The sampler of Fast-dLLM, approximate: cached keys and values of earlier steps, and several tokens a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm.core.samplers.base import BaseSampler
from dllm.core.samplers.config import BaseSamplerConfig, at_least, check_threshold_and_factor, one_of
from dllm.core.samplers.layout import Span
from dllm.core.samplers.schedules import even_counts


@dataclass
class FastDLLMSamplerConfig(BaseSamplerConfig):
    """Settings of :class:`FastDLLMSampler` besides those of :class:`BaseSamplerConfig`.

    At most one of threshold and factor is given. With neither, a step commits as many tokens as the schedule says.

    cache: "prefix", "dual" or None.
    threshold: commit every proposal of at least this probability, and at least the most probable one.
    factor: f; commit the r most probable proposals for the largest r with c_r >= 1 - f / (r + 1), and at least one.
    remasking: what ranks proposals where the schedule counts them: "low_confidence" or "random".
    steps: of the schedule, which commits m // S tokens at a step and one more at the first m mod S steps, where S is
        steps / blocks rounded up.
    """

    block_size: int | None = 32
    cache: str | None = "dual"
    threshold: float | None = 0.9
    factor: float | None = None
    steps: int = 128
    remasking: str = "low_confidence"

    def check(self) -> None:
        """See :meth:`BaseSamplerConfig.check`."""
        super().check()
        if self.cache is not None:
            one_of(("prefix", "dual"), "cache", self.cache)
        at_least(1, "steps", self.steps)
        if self.threshold is not None and self.factor is not None:
            raise ValueError(f"expected at most one of threshold and factor, got {self.threshold} and {self.factor}")
        check_threshold_and_factor(self.threshold, self.factor)
        one_of(("low_confidence", "random"), "remasking", self.remasking)
        if self.remasking == "random" and not self.scheduled:
            raise ValueError("remasking must be low_confidence beside threshold and factor, which rank by probability")

    @property
    def scheduled(self) -> bool:
        """Whether a schedule says how many tokens a step commits."""
        return self.threshold is None and self.factor is None


class FastDLLMSampler(BaseSampler):
    """Approximate sampler, block by block, that recomputes keys and values of a part of the canvas only.

    The first step of a block runs the whole canvas and keeps all keys and values. Later steps run

    - "prefix": the block and everything after it; keys and values before the block are those of its first step;
    - "dual": the block alone; all other keys and values are those of its first step, also of later masks;
    - None: the whole canvas; only the rule of how many tokens to commit is approximate.

    With "dual", a later step of a block of W columns in a canvas of L costs W / L of a step that runs the canvas. The
    kept keys and values do not depend on the tokens committed since the block's first step. Each row of a batch begins
    its blocks at its own steps. Under a right shift the first token of a block is predicted by the position before it,
    which later steps do not run; they reuse its logits of the block's first step.

    The first step of a block commits by the same rule as the others. (The program published for Dream commits only the
    first token of the block there, so that later steps do not need the position before it.)

    Args:
        model: as for :class:`BD3LMSampler`, but trained to attend to all positions.

    Raises:
        ValueError: from `sample` and `infill`, besides those of the settings: the model keeps no cache, or has a
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
        """At least one token at each step with a threshold or factor, else the schedule's number."""
        if not config.scheduled:
            return [1] * span.masks
        return even_counts(span.masks, -(-config.steps // span.blocks))

    def policy(self, config: FastDLLMSamplerConfig) -> dict[str, Any]:
        """Rank by probability or at random, with the cache of the settings."""
        ranked_by = "random" if config.remasking == "random" else "probability"
        rule = {"threshold": config.threshold, "factor": config.factor, "confidence": ranked_by}
        if config.cache is None:
            return rule
        return rule | {"cache": config.cache}
