"""LLaDA 2.0's sampler with the settings and defaults of dLLM 0.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dllm.core import samplers
from dllm.pipelines.aliases import WithAliases


@dataclass
class LLaDA2SamplerConfig(samplers.LLaDA2SamplerConfig):
    """Settings of :class:`LLaDA2Sampler` besides those of :class:`dllm.core.samplers.LLaDA2SamplerConfig`.

    cache: attention by blocks, as these models are trained; 0.1 always attends so.
    tempered: the confidence of 0.1.
    steps_per_block: another name of `steps`.
    eos_early_stop: another name of `stop_at_eos`.
    """

    cache: bool = True
    tempered: bool = True
    steps_per_block: int | None = None
    eos_early_stop: bool | None = None


class LLaDA2Sampler(WithAliases, samplers.LLaDA2Sampler):
    """:class:`dllm.core.samplers.LLaDA2Sampler` with the settings of dLLM 0.1.

    The confidence is the probability after temperature and filters. Prompts may have any lengths, and `infill` works.

    Example:
        >>> LLaDA2SamplerConfig().threshold, LLaDA2SamplerConfig().block_size
        (0.95, 32)
    """

    config_class = LLaDA2SamplerConfig
    aliases: ClassVar[dict[str, str]] = {"steps_per_block": "steps", "eos_early_stop": "stop_at_eos"}
