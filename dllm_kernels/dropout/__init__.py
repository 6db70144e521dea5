from dllm_kernels.dropout.api import dropout

__all__ = ["dropout"]
