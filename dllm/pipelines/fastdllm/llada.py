"""Fast-dLLM's sampler for LLaDA with the settings and defaults of dLLM 0.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dllm.core import samplers
from dllm.pipelines.aliases import WithAliases
from dllm.pipelines.llada import LLaDAConfig as FastdLLMLLaDAConfig
from dllm.pipelines.llada import LLaDAModelLM as FastdLLMLLaDAModelLM


@dataclass
class FastdLLMLLaDASamplerConfig(samplers.FastDLLMSamplerConfig):
    """Settings of :class:`FastdLLMLLaDASampler` besides those of :class:`dllm.core.samplers.FastDLLMSamplerConfig`.

    stochastic_transfer: False; 0.1 has this field, and a schedule of random counts here is MDLMSampler's.
    use_cache: another name of `cache`.
    """

    block_size: int | None = 128
    cache: str | None = None
    threshold: float | None = None
    stochastic_transfer: bool = False
    use_cache: str | None = None

    def check(self) -> None:
        """See :meth:`dllm.core.samplers.BaseSamplerConfig.check`."""
        super().check()
        if self.stochastic_transfer is not False:
            raise ValueError(f"stochastic_transfer must be False here, got {self.stochastic_transfer!r}")


class FastdLLMLLaDASampler(WithAliases, samplers.FastDLLMSampler):
    """:class:`dllm.core.samplers.FastDLLMSampler` with the settings of dLLM 0.1.

    Example:
        >>> config = FastdLLMLLaDASamplerConfig(use_cache="prefix", threshold=0.9)
        >>> config.block_size, config.steps
        (128, 128)
    """

    config_class = FastdLLMLLaDASamplerConfig
    aliases: ClassVar[dict[str, str]] = {"use_cache": "cache"}


__all__ = ["FastdLLMLLaDAConfig", "FastdLLMLLaDAModelLM", "FastdLLMLLaDASampler", "FastdLLMLLaDASamplerConfig"]
