from dllm_kernels.int8_linear.api import int8_linear

__all__ = ["int8_linear"]
