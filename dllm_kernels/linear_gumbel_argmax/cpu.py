"""The head and the sampling of its logits on the CPU: products of slices of the vocabulary, each reduced in cache."""

from __future__ import annotations

from torch import Tensor

from dllm_kernels.gumbel_argmax import cpu as gumbel_argmax
from dllm_kernels.linear_gumbel_argmax import sliced

BLOCK_R = 512
WHOLE_ROWS = 64  # with top_k or top_p, which need a row's whole vocabulary


def linear_gumbel_argmax(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    unconditional: Tensor | None = None,
    cfg_scale: float = 0.0,
    rows: Tensor | None = None,
    count: Tensor | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    **options: Tensor | bool | None,
) -> tuple[Tensor, ...]:
    """token, log_prob, margin, neg_entropy, lse; arguments as in the public function, already checked.

    `options` are those of :func:`dllm_kernels.gumbel_argmax.cpu.over_slices`.
    """
    hidden = sliced.choose(hidden, unconditional, cfg_scale, rows)
    head = (hidden, weight, bias, count)
    if top_k is not None or top_p is not None:
        return sliced.by_rows(*head, WHOLE_ROWS, impl="cpu", top_k=top_k, top_p=top_p, **options)
    return sliced.by_tokens(*head, BLOCK_R, slice_width(len(weight)), gumbel_argmax.over_slices, **options)


def slice_width(vocab_size: int) -> int:
    """Tokens of a slice: whole tiles of 1024, less than a tenth of the vocabulary, and not more than 64 rows keep in
    cache. It must not depend on the rows: the last bits of a row's statistics depend on it.

    Example:
        >>> slice_width(50368)
        4096
    """
    return min(max(vocab_size // 10 // 1024, 1) * 1024, 8192)
