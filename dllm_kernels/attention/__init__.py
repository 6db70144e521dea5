from dllm_kernels.attention.api import attention, packed_attention

__all__ = ["attention", "packed_attention"]
