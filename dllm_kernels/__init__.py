"""Operations on tensors for masked-diffusion language models: reference, Triton and C++ behind one function each.

Importing this package loads neither Triton nor the C++ extension; the first call that needs one does.
"""

from dllm_kernels.align_tokens import Alignment, align_tokens
from dllm_kernels.attention import attention, packed_attention
from dllm_kernels.block_schedule import (
    BlockSchedule,
    Candidates,
    CurrentBlock,
    advance_rows,
    list_candidates,
    place_proposals,
)
from dllm_kernels.dropout import dropout
from dllm_kernels.gumbel_argmax import GumbelArgmax, gumbel_argmax
from dllm_kernels.int8_linear import int8_linear
from dllm_kernels.linear_cross_entropy import linear_cross_entropy
from dllm_kernels.linear_expected_embedding import ExpectedEmbedding, linear_expected_embedding
from dllm_kernels.linear_gumbel_argmax import linear_gumbel_argmax
from dllm_kernels.masked_cross_entropy import CrossEntropy, masked_cross_entropy
from dllm_kernels.position_noise import position_noise
from dllm_kernels.swiglu_experts import swiglu_experts
from dllm_kernels.transfer_tokens import transfer_tokens
from dllm_kernels.truncation_floor import truncation_floor

__all__ = [
    "Alignment",
    "BlockSchedule",
    "Candidates",
    "CrossEntropy",
    "CurrentBlock",
    "ExpectedEmbedding",
    "GumbelArgmax",
    "advance_rows",
    "align_tokens",
    "attention",
    "dropout",
    "gumbel_argmax",
    "int8_linear",
    "linear_cross_entropy",
    "linear_expected_embedding",
    "linear_gumbel_argmax",
    "list_candidates",
    "masked_cross_entropy",
    "packed_attention",
    "place_proposals",
    "position_noise",
    "swiglu_experts",
    "transfer_tokens",
    "truncation_floor",
]
__version__ = "0.2.0"
