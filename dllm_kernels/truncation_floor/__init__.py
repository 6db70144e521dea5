from dllm_kernels.truncation_floor.api import truncation_floor

__all__ = ["truncation_floor"]
