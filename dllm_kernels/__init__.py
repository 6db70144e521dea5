"""Operations on tensors for masked-diffusion language models: reference, Triton and C++ behind one function each.

Importing this package loads neither Triton nor the C++ extension; the first call that needs one does.
"""

from dllm_kernels.gumbel_argmax import GumbelArgmax, gumbel_argmax
from dllm_kernels.transfer_tokens import transfer_tokens

__all__ = ["GumbelArgmax", "gumbel_argmax", "transfer_tokens"]
__version__ = "0.2.0"
