"""Nemotron-Labs-Diffusion (3B, 8B, 14B), whose models run by code that comes with them."""

from dllm.pipelines.nemotron_diffusion.sampler import (
    NemotronDiffusionSampler,
    NemotronDiffusionSamplerConfig,
    NemotronDiffusionSamplerOutput,
)

__all__ = ["NemotronDiffusionSampler", "NemotronDiffusionSamplerConfig", "NemotronDiffusionSamplerOutput"]
