"""Dream's sampler, and dLLM 0.1's variant of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm.core.samplers.base import BaseSampler
from dllm.core.samplers.config import BaseSamplerConfig, at_least, check_filters, one_of, true_or_false
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
    eps: end of the time grid linspace(1, eps, steps + 1).
    alg: which tokens a step commits. "origin": every masked token with the same probability. "maskgit_plus",
        "topk_margin", "entropy": those of highest confidence, which is the probability, its margin over the second most
        probable token, or the negative entropy.
    alg_temp: above 0, positions are drawn without replacement from softmax(confidence / alg_temp).
    top_p, top_k: tokens that may be proposed: those with at most a probability mass of top_p before them, and of these
        the top_k most probable; None is off, and so is a top_p of 1.
    schedule: how many tokens a step commits. "time": the share 1 - s / t of a row's masks, for neighbouring times
        t > s of the grid, as in Dream. "alpha": the number that the scheduler gives, as in dLLM 0.1. With alg "origin"
        the grid is used always.
    stochastic_transfer: with "alpha", the number is drawn from Binomial(m, p) instead of rounded.
    """

    max_new_tokens: int | None = 20
    block_size: int | None = None
    temperature: float = 1.0
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
        check_filters(self.top_k, self.top_p)
        if self.alg == "origin" and self.alg_temp:
            raise ValueError(f"alg 'origin' ranks nothing, so alg_temp must be 0, got {self.alg_temp}")


class DreamSampler(BaseSampler):
    """The sampler of Dream: one block, shifted logits, confidence of the distribution after temperature and filters.

    Dream takes one count for the whole batch, from the mean number of masks. Here each row has its own count, so that
    it does not depend on the others.

    Source: Dream 7B (arXiv:2508.15487), its `generation_utils`.
    """

    config_class = DreamSamplerConfig
    pads_left = True
    shifts_right = True

    def amounts(self, config: DreamSamplerConfig, span: Span) -> Sequence[float]:
        """The probability of each step for "origin", else the number of tokens that it commits."""
        steps = -(-config.steps // span.blocks)
        if config.alg == "origin":
            return time_grid_probabilities(steps, config.eps)
        if config.schedule == "time":
            return time_grid_counts(span.masks, time_grid_probabilities(steps, config.eps))
        draw = binomial_draws(span.seed, span.start) if config.stochastic_transfer else None
        return scheduled_counts(span.masks, transfer_probabilities(steps, self.scheduler), draw)

    def policy(self, config: DreamSamplerConfig) -> dict[str, Any]:
        """Filters of the proposals, and how positions are ranked or drawn."""
        sampled = bool(config.alg_temp)
        ranked_by = CONFIDENCE.get(config.alg, "log_prob")
        return {
            "tempered": True,
            "top_p": None if config.top_p == 1 else config.top_p,
            "top_k": config.top_k,
            # For ranking alone, log probabilities also tell apart tokens whose float32 probability is 1.
            "confidence": "log_prob" if ranked_by == "probability" and not sampled else ranked_by,
            # Below 1e-30 the draw already follows the order of any distinct float32 confidences; it avoids 0 / 0.
            "order_temperature": max(config.alg_temp, 1e-30) if sampled else 0.0,
            "rule": "bernoulli" if config.alg == "origin" else "count",
        }
