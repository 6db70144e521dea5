"""The sampler of block diffusion (BD3-LM): no block attends to a later one, so finished blocks are cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm.core.samplers.config import BaseSamplerConfig, at_least, true_or_false
from dllm.core.samplers.layout import Span
from dllm.core.samplers.mdlm import MDLMSampler, MDLMSamplerConfig
from dllm.core.samplers.schedules import binomial_draws, scheduled_counts, transfer_probabilities


@dataclass
class BD3LMSamplerConfig(MDLMSamplerConfig):
    """Settings of :class:`BD3LMSampler` besides those of :class:`MDLMSamplerConfig`.

    steps_per_block: denoising steps of each block; None: steps / blocks, rounded up.
    stop_at_eos: a row is finished at the end of the block in which the tokenizer's EOS has appeared; the rest of the
        row becomes EOS.
    cache: keep the keys and values of finished blocks. False recomputes them in every step, with the same result.
    """

    block_size: int | None = 32
    stop_at_eos: bool = True
    steps_per_block: int | None = None
    cache: bool = True

    def check(self) -> None:
        """See :meth:`BaseSamplerConfig.check`."""
        super().check()
        true_or_false("cache", self.cache)
        if self.block_size is None:
            raise ValueError("block_size must be a number, as blocks are the unit of attention; got None")
        if self.steps_per_block is not None:
            at_least(1, "steps_per_block", self.steps_per_block)


class BD3LMSampler(MDLMSampler):
    """Block by block, as :class:`MDLMSampler`, with a model that was trained to attend to no later block:

    a query at p attends to a key at q iff block(q) <= block(p), where block(p) = floor((p - n) / block_size) and n is
    the first generated position. Blocks of the prompt are negative.

    The keys and values of a finished block never change, so they are kept and neither recomputed nor copied. A step
    runs the current block; the first step of a block also runs the block before it, whose tokens are final by then.

    Args:
        model: takes a 4-D attention mask and `past_key_values`: a causal model of transformers, made bidirectional by
            :func:`dllm.models.bidirectional`.

    Raises:
        ValueError: from `sample` and `infill`, besides those of the settings: the model keeps no cache, or has a
            sliding window that is narrower than a row.

    Source: BD3-LM (arXiv:2503.09573), as dLLM 0.1 has it.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from dllm.models import bidirectional
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = bidirectional(LlamaForCausalLM(LlamaConfig(**size)).eval())
        >>> sampler = BD3LMSampler(model, SimpleNamespace(mask_token_id=3, eos_token_id=2))
        >>> sampler.sample([[5, 6], [7]], max_new_tokens=4, steps=4, block_size=2).shape
        torch.Size([2, 6])
    """

    config_class = BD3LMSamplerConfig

    def infill(self, inputs: Any, config: BaseSamplerConfig | None = None, **overrides: Any) -> Any:
        """As :meth:`BaseSampler.infill`. All masks are filled, also those after an EOS."""
        return super().infill(inputs, config, **{"stop_at_eos": False} | overrides)

    def amounts(self, config: BD3LMSamplerConfig, span: Span) -> Sequence[int]:
        """Tokens committed at each step of a block."""
        steps = config.steps_per_block or -(-config.steps // span.blocks)
        draw = binomial_draws(span.seed, span.start) if config.stochastic_transfer else None
        return scheduled_counts(span.masks, transfer_probabilities(steps, self.scheduler), draw)

    def policy(self, config: BD3LMSamplerConfig) -> dict[str, Any]:
        """The policy of :class:`MDLMSampler`, with attention and cache by blocks."""
        return super().policy(config) | {
            "block_causal": config.block_size,
            "cache": "block" if config.cache else None,
            "stops_between_blocks": True,
        }
