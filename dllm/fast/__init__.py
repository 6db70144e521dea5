"""The engine room: fast, exact sampling from masked-diffusion language models. Imports torch and dllm_kernels only."""

from dllm.fast.generate import Stats, generate
from dllm.fast.loop import Step

__all__ = ["Stats", "Step", "generate"]
