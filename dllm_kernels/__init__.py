"""Operations on tensors for masked-diffusion language models: reference, Triton and C++ behind one function each.

Importing this package loads neither Triton nor the C++ extension; the first call that needs one does.
"""

from dllm_kernels.gumbel_argmax import GumbelArgmax, gumbel_argmax
from dllm_kernels.linear_cross_entropy import linear_cross_entropy
from dllm_kernels.linear_gumbel_argmax import linear_gumbel_argmax
from dllm_kernels.masked_cross_entropy import CrossEntropy, masked_cross_entropy
from dllm_kernels.transfer_tokens import transfer_tokens
from dllm_kernels.truncation_floor import truncation_floor

__all__ = [
    "CrossEntropy",
    "GumbelArgmax",
    "gumbel_argmax",
    "linear_cross_entropy",
    "linear_gumbel_argmax",
    "masked_cross_entropy",
    "transfer_tokens",
    "truncation_floor",
]
__version__ = "0.2.0"
