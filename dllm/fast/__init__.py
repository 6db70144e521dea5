"""The engine: fast, exact sampling and training of masked-diffusion models, and a patch for scripts that exist.

Imports torch and dllm_kernels only.
"""

from dllm.fast.patch import patch, unpatch
from dllm.fast.quantize import quantize
from dllm.fast.sampling.generate import generate
from dllm.fast.sampling.live import Step
from dllm.fast.sampling.stats import Stats

__all__ = ["Stats", "Step", "generate", "patch", "quantize", "unpatch"]
