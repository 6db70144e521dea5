from dllm_kernels.position_noise.api import position_noise

__all__ = ["position_noise"]
