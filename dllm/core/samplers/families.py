"""The sampler of each family of models, with the settings that its authors publish. One table, for all commands."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from torch import nn

from dllm.core.samplers.base import BaseSampler, BaseSamplerConfig
from dllm.core.samplers.bd3lm import BD3LMSampler
from dllm.core.samplers.diffusion_gemma import DiffusionGemmaSampler
from dllm.core.samplers.diffusion_gemma_config import DiffusionGemmaSamplerConfig
from dllm.core.samplers.dream import DreamSampler, DreamSamplerConfig
from dllm.core.samplers.entropy_bound import EntropyBoundSampler
from dllm.core.samplers.fast_dllm import FastDLLMSampler
from dllm.core.samplers.llada import LLaDASampler, LLaDASamplerConfig
from dllm.core.samplers.llada2 import LLaDA2Sampler, LLaDA2SamplerConfig
from dllm.core.samplers.llada21 import LLaDA21Sampler, LLaDA21SamplerConfig
from dllm.core.samplers.mdlm import MDLMSampler, MDLMSamplerConfig
from dllm.core.samplers.nemotron_diffusion import NemotronDiffusionSampler, NemotronDiffusionSamplerConfig
from dllm.core.samplers.rnd1 import RND1Sampler, RND1SamplerConfig
from dllm.core.samplers.threshold import ThresholdSampler
from dllm.fast.model import family_of, is_diffusion_gemma


class SamplerChoice(NamedTuple):
    """A sampler and its settings.

    sampler: the class.
    config: an instance of its `config_class`.
    """

    sampler: type[BaseSampler] | type[DiffusionGemmaSampler]
    config: BaseSamplerConfig | DiffusionGemmaSamplerConfig


# The samplers by the names under which commands know them.
SAMPLERS: dict[str, type[BaseSampler] | type[DiffusionGemmaSampler]] = {
    "mdlm": MDLMSampler,
    "bd3lm": BD3LMSampler,
    "llada": LLaDASampler,
    "llada2": LLaDA2Sampler,
    "llada2.1": LLaDA21Sampler,
    "dream": DreamSampler,
    "rnd1": RND1Sampler,
    "fast_dllm": FastDLLMSampler,
    "threshold": ThresholdSampler,
    "entropy_bound": EntropyBoundSampler,
    "diffusion_gemma": DiffusionGemmaSampler,
    "nemotron_diffusion": NemotronDiffusionSampler,
}

# What the card of a family's model does, where that differs from the sampler's own defaults (those of dLLM 0.1).
FAMILIES: dict[str, SamplerChoice] = {
    "llada": SamplerChoice(LLaDASampler, LLaDASamplerConfig(block_size=32)),
    "llada_moe": SamplerChoice(LLaDASampler, LLaDASamplerConfig(block_size=32)),
    "dream": SamplerChoice(
        DreamSampler,
        DreamSamplerConfig(schedule="time", alg="entropy", temperature=0.2, top_p=0.95, top_k=None),
    ),
    "rnd1": SamplerChoice(RND1Sampler, RND1SamplerConfig()),
    "a2d": SamplerChoice(MDLMSampler, MDLMSamplerConfig(block_size=None)),
    "llada2": SamplerChoice(LLaDA2Sampler, LLaDA2SamplerConfig()),
    "llada2.1": SamplerChoice(LLaDA21Sampler, LLaDA21SamplerConfig()),
    "nemotron_diffusion": SamplerChoice(NemotronDiffusionSampler, NemotronDiffusionSamplerConfig(block_size=32)),
}
# BERT, and models whose configuration names no family.
OTHERS = SamplerChoice(MDLMSampler, MDLMSamplerConfig(block_size=None))


def sampler_for(model: nn.Module, name: str | None = None) -> SamplerChoice:
    """The sampler of a model's family, and its settings.

    The family is that in the model's configuration, which :func:`dllm.models.get_model` writes. LLaDA 2.1 has the
    configuration of LLaDA 2.0: it is told from it by "2.1" in the name of the model's folder or repository. The
    settings of DiffusionGemma are those of the model's generation_config.

    Args:
        model: the model.
        name: of a sampler, one of `SAMPLERS`, in place of the family's. Its settings are then the defaults of its
            class, unless it is the family's own.

    Raises:
        ValueError: no sampler has that name, or it is not one for the model: DiffusionGemma has no mask token, and its
            sampler runs nothing else.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> model = load_shipped()[0]
        >>> sampler_for(model).sampler.__name__, sampler_for(model, "dream").sampler.__name__
        ('MDLMSampler', 'DreamSampler')
    """
    if is_diffusion_gemma(model):
        found = SamplerChoice(DiffusionGemmaSampler, DiffusionGemmaSamplerConfig.of(model))
    else:
        found = FAMILIES.get(_family_of(model), OTHERS)
    if name is None:
        return found
    if name not in SAMPLERS:
        raise ValueError(f"the sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    kind = SAMPLERS[name]
    if DiffusionGemmaSampler in (kind, found.sampler) and kind is not found.sampler:
        raise ValueError(
            f"{kind.__name__} cannot run a {type(model).__name__}: use {found.sampler.__name__}, as without a name"
        )
    return found if kind is found.sampler else SamplerChoice(kind, kind.config_class())


def one_token_a_step(chosen: SamplerChoice) -> BaseSamplerConfig:
    """The settings with so many steps that a step commits one token, if it commits no more than the schedule says.

    `steps` is a number for each block in LLaDA 2 and Nemotron, and for all blocks together in other samplers.

    Example:
        >>> one_token_a_step(SamplerChoice(MDLMSampler, MDLMSamplerConfig(max_new_tokens=48, block_size=32))).steps
        64
    """
    config = chosen.config
    if config.max_new_tokens is None or not hasattr(config, "steps"):
        return config
    block = min(config.block_size or config.max_new_tokens, config.max_new_tokens)
    blocks = 1 if config.steps_of == "block" else -(-config.max_new_tokens // block)
    return dataclasses.replace(config, steps=blocks * block)


def _family_of(model: nn.Module) -> str | None:
    family = family_of(model)
    if family == "llada2" and "2.1" in Path(str(getattr(model, "name_or_path", ""))).name:
        return "llada2.1"
    return family
