"""Samplers: each one a schedule and a policy for the denoising loop of :mod:`dllm.fast.sampling`."""

from dllm.core.samplers.base import BaseSampler, BaseSamplerConfig, BaseSamplerOutput, Plan, SampledRow
from dllm.core.samplers.bd3lm import BD3LMSampler, BD3LMSamplerConfig
from dllm.core.samplers.diffusion_gemma import DiffusionGemmaSampler, DiffusionGemmaSamplerConfig
from dllm.core.samplers.dream import DreamSampler, DreamSamplerConfig
from dllm.core.samplers.editflow import EditFlowSampler, EditFlowSamplerConfig
from dllm.core.samplers.entropy_bound import EntropyBoundSampler, EntropyBoundSamplerConfig
from dllm.core.samplers.families import SamplerChoice, sampler_for
from dllm.core.samplers.fast_dllm import FastDLLMSampler, FastDLLMSamplerConfig
from dllm.core.samplers.llada import LLaDASampler, LLaDASamplerConfig
from dllm.core.samplers.llada2 import LLaDA2Sampler, LLaDA2SamplerConfig
from dllm.core.samplers.llada21 import LLaDA21Sampler, LLaDA21SamplerConfig
from dllm.core.samplers.mdlm import MDLMSampler, MDLMSamplerConfig
from dllm.core.samplers.nemotron_diffusion import NemotronDiffusionSampler, NemotronDiffusionSamplerConfig
from dllm.core.samplers.rnd1 import RND1Sampler, RND1SamplerConfig
from dllm.core.samplers.threshold import ThresholdSampler, ThresholdSamplerConfig
from dllm.core.samplers.utils import add_gumbel_noise, get_num_transfer_tokens

__all__ = [
    "BD3LMSampler",
    "BD3LMSamplerConfig",
    "BaseSampler",
    "BaseSamplerConfig",
    "BaseSamplerOutput",
    "DiffusionGemmaSampler",
    "DiffusionGemmaSamplerConfig",
    "DreamSampler",
    "DreamSamplerConfig",
    "EditFlowSampler",
    "EditFlowSamplerConfig",
    "EntropyBoundSampler",
    "EntropyBoundSamplerConfig",
    "FastDLLMSampler",
    "FastDLLMSamplerConfig",
    "LLaDA2Sampler",
    "LLaDA2SamplerConfig",
    "LLaDA21Sampler",
    "LLaDA21SamplerConfig",
    "LLaDASampler",
    "LLaDASamplerConfig",
    "MDLMSampler",
    "MDLMSamplerConfig",
    "NemotronDiffusionSampler",
    "NemotronDiffusionSamplerConfig",
    "Plan",
    "RND1Sampler",
    "RND1SamplerConfig",
    "SampledRow",
    "SamplerChoice",
    "ThresholdSampler",
    "ThresholdSamplerConfig",
    "add_gumbel_noise",
    "get_num_transfer_tokens",
    "sampler_for",
]
