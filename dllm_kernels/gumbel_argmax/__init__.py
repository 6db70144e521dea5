from dllm_kernels.gumbel_argmax.api import GumbelArgmax, gumbel_argmax

__all__ = ["GumbelArgmax", "gumbel_argmax"]
