from dllm_kernels.linear_gumbel_argmax.api import linear_gumbel_argmax

__all__ = ["linear_gumbel_argmax"]
