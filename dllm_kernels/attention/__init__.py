from dllm_kernels.attention.api import attention

__all__ = ["attention"]
