"""The sampler of dLLM 0.1 for masked-diffusion language models (BERT-chat, LLaDA and their kin)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm.core.samplers.base import BaseSampler
from dllm.core.samplers.config import BaseSamplerConfig, at_least, one_of, true_or_false
from dllm.core.samplers.layout import Span
from dllm.core.samplers.schedules import binomial_draws, scheduled_counts, transfer_probabilities


@dataclass
class MDLMSamplerConfig(BaseSamplerConfig):
    """Settings of :class:`MDLMSampler` besides those of :class:`BaseSamplerConfig`.

    steps: denoising steps of a row; each block has steps / blocks of them, rounded up.
    remasking: what ranks proposals: "low_confidence" (their probability) or "random".
    stochastic_transfer: the number committed at a step is drawn from Binomial(m, p) instead of rounded.
    """

    steps: int = 128
    remasking: str = "low_confidence"
    stochastic_transfer: bool = False

    def check(self) -> None:
        """See :meth:`BaseSamplerConfig.check`."""
        super().check()
        at_least(1, "steps", self.steps)
        true_or_false("stochastic_transfer", self.stochastic_transfer)
        one_of(("low_confidence", "random"), "remasking", self.remasking)


class MDLMSampler(BaseSampler):
    """The sampler of MDLM: block by block, each step commits the k_j proposals of highest confidence,

    k_j = round(m p_j), p_j = 1 - (1 - alpha(s)) / (1 - alpha(t)), t = (S-j) / S, s = (S-j-1) / S,

    where m tokens of the block are masked and S = ceil(steps / blocks). Steps that commit nothing are left out.

    Source: MDLM (arXiv:2406.07524) with the remasking of LLaDA (arXiv:2502.09992), as dLLM 0.1 has it.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> model, tokenizer = load_shipped()
        >>> prompt = tokenizer("[Question]\\nWhat is 12 * 4?\\n[/Question]\\n\\n[Answer]\\n", add_special_tokens=False)
        >>> sampler = MDLMSampler(model, tokenizer)
        >>> out = sampler.sample([prompt["input_ids"]], max_new_tokens=16, steps=16, block_size=16)
        >>> tokenizer.decode(out[0, len(prompt["input_ids"]):], skip_special_tokens=True).strip()
        '12 * 4 = 48.'
    """

    config_class = MDLMSamplerConfig

    def amounts(self, config: MDLMSamplerConfig, span: Span) -> Sequence[int]:
        """Tokens committed at each step of a block."""
        probabilities = transfer_probabilities(-(-config.steps // span.blocks), self.scheduler)
        draw = binomial_draws(span.seed, span.start) if config.stochastic_transfer else None
        return scheduled_counts(span.masks, probabilities, draw)

    def policy(self, config: MDLMSamplerConfig) -> dict[str, Any]:
        """Rank by confidence or at random."""
        return {"confidence": "random" if config.remasking == "random" else "log_prob"}
