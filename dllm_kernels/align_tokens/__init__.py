from dllm_kernels.align_tokens.api import BLANK, Alignment, align_tokens

__all__ = ["BLANK", "Alignment", "align_tokens"]
