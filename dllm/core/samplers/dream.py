"""Dream's sampler, and dLLM 0.1's variant of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm.core.samplers.base import BaseSampler
from dllm.core.samplers.config import BaseSamplerConfig, at_least, one_of, true_or_false
from dllm.core.samplers.layout import Span
from dllm.core.samplers.schedules import (
    binomial_draws,
    scheduled_counts,
    time_grid_counts,
    time_grid_probabilities,
    transfer_probabilities,
)
from dllm_kernels import _checks

# what ranks the proposals
CONFIDENCE = {"maskgit_plus": "probability", "topk_margin": "margin", "entropy": "neg_entropy"}


@dataclass
class DreamSamplerConfig(BaseSamplerConfig):
    """Settings of :class:`DreamSampler` besides those of :class:`BaseSamplerConfig`; all tokens are one block.

    steps: denoising steps.
    eps: where the time grid ends.
    alg: "origin": every masked token is committed with the same probability; "maskgit_plus", "topk_margin",
        "entropy": the surest are, by probability, by its distance to the second likeliest, by entropy.
    alg_temp: above 0, positions are drawn without replacement from softmax(confidence / alg_temp).
    top_p, top_k: proposals come from the likeliest tokens: those before which the probability mass is at most top_p,
        and of them the top_k; None is off, and so is a top_p of 1.
    schedule: how many tokens a step commits: "time", the share 1 - s / t of a row's masks on the grid linspace(1, eps,
        steps + 1), as Dream does; "alpha", what the scheduler says, as dLLM 0.1 does. "origin" follows the grid.
    stochastic_transfer: with "alpha", the number is drawn from Binomial(m, p) instead of rounded.
    """

    max_new_tokens: int | None = 20
    block_size: int | None = None
    temperature: float = 1.0
    right_shift_logits: bool = True
    steps: int = 512
    eps: float = 1e-3
    alg: str = "origin"
    alg_temp: float | None = 0.0
    top_p: float | None = 1.0
    top_k: int | None = 50
    schedule: str = "alpha"
    stochastic_transfer: bool = False

    def check(self) -> None:
        """See :meth:`BaseSamplerConfig.check`."""
        super().check()
        at_least(1, "steps", self.steps)
        true_or_false("stochastic_transfer", self.stochastic_transfer)
        one_of(("origin", *CONFIDENCE), "alg", self.alg)
        one_of(("alpha", "time"), "schedule", self.schedule)
        if self.alg_temp is not None:
            _checks.finite_at_least_zero("alg_temp", self.alg_temp)
        if not 0 < _checks.number("eps", self.eps) < 1:
            raise ValueError(f"eps must lie between 0 and 1, got {self.eps}")
        if self.top_p is not None and not 0 < _checks.number("top_p", self.top_p) <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.top_k is not None:
            at_least(1, "top_k", self.top_k)
        if self.alg == "origin" and self.alg_temp:
            raise ValueError(f"alg 'origin' ranks nothing, so alg_temp must be 0, got {self.alg_temp}")


class DreamSampler(BaseSampler):
    """All masks at once, logits shifted, confidence of the tempered and filtered distribution.

    Source: Dream 7B (arXiv:2508.15487), its `generation_utils`. Where Dream takes one count for the whole batch, from
    the mean number of masks, a row here takes its own, so that it does not depend on the others.
    """

    config_class = DreamSamplerConfig
    pads_left = True

    def amounts(self, config: DreamSamplerConfig, span: Span) -> Sequence[float]:
        """Probabilities of "origin", or counts."""
        steps = -(-config.steps // span.blocks)
        if config.alg == "origin":
            return time_grid_probabilities(steps, config.eps)
        if config.schedule == "time":
            return time_grid_counts(span.masks, time_grid_probabilities(steps, config.eps))
        draw = binomial_draws(span.seed, span.start) if config.stochastic_transfer else None
        return scheduled_counts(span.masks, transfer_probabilities(steps, self.scheduler), draw)

    def policy(self, config: DreamSamplerConfig) -> dict[str, Any]:
        """Statistics of what is really drawn from; how positions are ranked or drawn."""
        sampled = bool(config.alg_temp)
        ranked_by = CONFIDENCE.get(config.alg, "log_prob")
        return {
            "tempered": True,
            "top_p": None if config.top_p == 1 else config.top_p,
            "top_k": config.top_k,
            # as long as only their order counts, logarithms tell apart what is 1 as a float32 probability
            "confidence": "log_prob" if ranked_by == "probability" and not sampled else ranked_by,
            # below 1e-30 confidences that differ as float32 numbers are drawn in their order anyway; 0 / 0 is none
            "order_temperature": max(config.alg_temp, 1e-30) if sampled else 0.0,
            "rule": "bernoulli" if config.alg == "origin" else "count",
        }
