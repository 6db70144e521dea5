"""FlashInfer: sampling from given logits, and top-k, both without a sort."""

import flashinfer.sampling
import torch


def draw(logits: torch.Tensor) -> torch.Tensor:
    """A token drawn from the softmax of each row; the library requires float32 logits."""
    return flashinfer.sampling.sampling_from_logits(logits.float())


def keep_top_k(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """The logits with -inf at all but the k largest."""
    return flashinfer.sampling.top_k_mask_logits(logits, top_k)
