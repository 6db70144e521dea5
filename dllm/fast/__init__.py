"""The engine room: fast, exact sampling, and a patch for scripts that exist. Imports torch and dllm_kernels only."""

from dllm.fast.generate import generate
from dllm.fast.loop import Step
from dllm.fast.patch import patch, unpatch
from dllm.fast.stats import Stats

__all__ = ["Stats", "Step", "generate", "patch", "unpatch"]
