"""The sampler of LLaDA: block by block, an even number of tokens at each step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm.core.samplers.base import BaseSampler
from dllm.core.samplers.config import BaseSamplerConfig, at_least, one_of, true_or_false
from dllm.core.samplers.layout import Span
from dllm.core.samplers.schedules import even_counts

END_OF_TURN = "<|eot_id|>"  # of tokenizers without an eot_token_id


@dataclass
class LLaDASamplerConfig(BaseSamplerConfig):
    """Settings of :class:`LLaDASampler` besides those of :class:`BaseSamplerConfig`.

    steps: denoising steps in all, a multiple of the number of blocks.
    remasking: what ranks proposals: "low_confidence" (their probability) or "random".
    logits_eos_inf: never propose the tokenizer's EOS.
    confidence_eos_eot_inf: EOS and end-of-turn tokens have the lowest confidence, so they are committed last.
    """

    steps: int = 128
    remasking: str = "low_confidence"
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False

    def check(self) -> None:
        """See :meth:`BaseSamplerConfig.check`."""
        super().check()
        at_least(1, "steps", self.steps)
        for name in ("logits_eos_inf", "confidence_eos_eot_inf"):
            true_or_false(name, getattr(self, name))
        one_of(("low_confidence", "random"), "remasking", self.remasking)


class LLaDASampler(BaseSampler):
    """The sampler of LLaDA: block by block, each step commits the proposals of highest confidence.

    The m masked tokens of a block take S = steps / blocks steps, which commit m // S tokens each, the first m mod S
    steps one more.

    Source: `generate` of LLaDA (arXiv:2502.09992).
    """

    config_class = LLaDASamplerConfig

    def amounts(self, config: LLaDASamplerConfig, span: Span) -> Sequence[int]:
        """Tokens committed at each step of a block."""
        if config.steps % span.blocks:
            raise ValueError(f"steps must be a multiple of the {span.blocks} blocks, got {config.steps}")
        return even_counts(span.masks, config.steps // span.blocks)

    def policy(self, config: LLaDASamplerConfig) -> dict[str, Any]:
        """Rank by confidence or at random."""
        return {"confidence": "random" if config.remasking == "random" else "log_prob"}

    def _settings(self, config: BaseSamplerConfig | None, overrides: dict[str, Any]) -> LLaDASamplerConfig:
        """The settings, with the options about EOS turned into lists of suppressed tokens."""
        config = super()._settings(config, overrides)
        eos, end_of_turn = getattr(self.tokenizer, "eos_token_id", None), self._end_of_turn_tokens()
        if (config.logits_eos_inf or config.confidence_eos_eot_inf) and eos is None:
            raise ValueError("logits_eos_inf and confidence_eos_eot_inf need a tokenizer with an eos_token_id")
        never = [eos] if config.logits_eos_inf else []
        late = [eos, *end_of_turn] if config.confidence_eos_eot_inf else []
        return dataclasses.replace(
            config,
            suppress_tokens=[*(config.suppress_tokens or []), *never],
            begin_suppress_tokens=[*(config.begin_suppress_tokens or []), *late],
        )

    def _end_of_turn_tokens(self) -> list[int]:
        token = getattr(self.tokenizer, "eot_token_id", None)
        if token is None and hasattr(self.tokenizer, "get_vocab"):
            token = self.tokenizer.get_vocab().get(END_OF_TURN)
        return [] if token is None else [token]
