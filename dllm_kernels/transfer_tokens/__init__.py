from dllm_kernels.transfer_tokens.api import transfer_tokens

__all__ = ["transfer_tokens"]
