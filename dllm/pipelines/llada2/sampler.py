"""LLaDA 2.0's sampler with the settings and defaults of dLLM 0.1."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from dllm.core import samplers
from dllm.core.samplers.config import at_least
from dllm.pipelines.aliases import WithAliases
from dllm_kernels import _checks


@dataclass
class LLaDA2SamplerConfig(samplers.LLaDA2SamplerConfig):
    """Settings of :class:`LLaDA2Sampler` besides those of :class:`dllm.core.samplers.LLaDA2SamplerConfig`.

    cache: attention by blocks, as these models are trained; 0.1 always attends so.
    top_k, top_p: tokens that may be proposed: the top_k most probable ones, and of these those with at most a share
        top_p of their mass before them; None is off, and so is a top_p of 1.
    minimal_topk: a step commits at least this many tokens on average: `steps` is at most
        max_new_tokens // minimal_topk.
    steps_per_block: another name of `steps`.
    eos_early_stop: another name of `stop_at_eos`.
    """

    cache: bool = True
    top_k: int | None = None
    top_p: float | None = None
    minimal_topk: int = 1
    steps_per_block: int | None = None
    eos_early_stop: bool | None = None

    def check(self) -> None:
        """See :meth:`dllm.core.samplers.BaseSamplerConfig.check`."""
        super().check()
        check_filters(self)
        at_least(1, "minimal_topk", self.minimal_topk)


class LLaDA2Sampler(WithAliases, samplers.LLaDA2Sampler):
    """:class:`dllm.core.samplers.LLaDA2Sampler` with the settings of dLLM 0.1.

    The confidence is the probability after temperature and filters. Prompts may have any lengths, and `infill` works.

    Example:
        >>> LLaDA2SamplerConfig().threshold, LLaDA2SamplerConfig().block_size
        (0.95, 32)
    """

    config_class = LLaDA2SamplerConfig
    aliases: ClassVar[dict[str, str]] = {"steps_per_block": "steps", "eos_early_stop": "stop_at_eos"}

    def amounts(self, config: LLaDA2SamplerConfig, span: Any) -> Any:
        """The least number of tokens to commit at each step."""
        if config.minimal_topk > 1 and config.max_new_tokens is not None:
            most = max(1, config.max_new_tokens // config.minimal_topk)
            config = dataclasses.replace(config, steps=min(config.steps, most))
        return super().amounts(config, span)

    def policy(self, config: LLaDA2SamplerConfig) -> dict[str, Any]:
        """The policy of LLaDA 2.0, with temperature and filters before the confidence."""
        return super().policy(config) | filters(config)


def filters(config: Any) -> dict[str, Any]:
    """The fields of a policy for temperature, `top_k` and `top_p` before the confidence."""
    top_p = None if config.top_p == 1 else config.top_p
    return {"tempered": True, "top_k": config.top_k, "top_p": top_p, "top_k_first": True}


def check_filters(config: Any) -> None:
    """Check `top_k` and `top_p`.

    Raises:
        TypeError, ValueError: one breaks its rule.
    """
    if config.top_k is not None:
        at_least(1, "top_k", config.top_k)
    if config.top_p is not None and not 0 < _checks.number("top_p", config.top_p) <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {config.top_p}")
