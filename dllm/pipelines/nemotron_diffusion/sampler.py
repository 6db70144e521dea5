"""Nemotron's sampler with the settings and defaults of dLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from dllm.core import samplers
from dllm.pipelines.aliases import WithAliases


@dataclass
class NemotronDiffusionSamplerConfig(samplers.NemotronDiffusionSamplerConfig):
    """Settings of :class:`NemotronDiffusionSampler` besides those of
    :class:`dllm.core.samplers.NemotronDiffusionSamplerConfig`.

    block_length: another name of `block_size`.
    """

    max_new_tokens: int | None = 8192
    max_thinking_tokens: int | None = 6000
    block_length: int | None = None


@dataclass
class NemotronDiffusionSamplerOutput(samplers.BaseSamplerOutput):
    """What the sampler returns with `return_dict`."""

    @property
    def nfe(self) -> int:
        """How often the model ran: causal passes and steps."""
        return self.stats.forwards


class NemotronDiffusionSampler(WithAliases, samplers.NemotronDiffusionSampler):
    """:class:`dllm.core.samplers.NemotronDiffusionSampler` with the settings of dLLM.

    Prompts may have any lengths, and `max_new_tokens` need not be a multiple of the block.

    Example:
        >>> NemotronDiffusionSamplerConfig().max_thinking_tokens, NemotronDiffusionSamplerConfig().block_size
        (6000, 8)
    """

    config_class = NemotronDiffusionSamplerConfig
    aliases: ClassVar[dict[str, str]] = {"block_length": "block_size"}

    def sample(self, *arguments: Any, **settings: Any) -> Tensor | NemotronDiffusionSamplerOutput:
        """As :meth:`dllm.core.samplers.BaseSampler.sample`."""
        found = super().sample(*arguments, **settings)
        return found if isinstance(found, Tensor) else NemotronDiffusionSamplerOutput(**vars(found))
