from dllm_kernels.masked_cross_entropy.api import CrossEntropy, masked_cross_entropy

__all__ = ["CrossEntropy", "masked_cross_entropy"]
