from dllm_kernels.swiglu_experts.api import swiglu_experts

__all__ = ["swiglu_experts"]
