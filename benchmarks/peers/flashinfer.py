"""FlashInfer: a draw from given logits, and top-k, without a sort."""

import flashinfer.sampling
import torch


def draw(logits: torch.Tensor) -> torch.Tensor:
    """A token of each row from the softmax of its logits, which it wants in float32."""
    return flashinfer.sampling.sampling_from_logits(logits.float())


def keep_top_k(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """The logits with -inf below the k largest."""
    return flashinfer.sampling.top_k_mask_logits(logits, top_k)
