"""Gumbel-argmax on the CPU: calls csrc/gumbel_argmax.cpp."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dllm_kernels import _checks

_STATE = 5  # float64 words that hold what is known of a row between slices


def gumbel_argmax(
    logits: Tensor,
    temperature: Tensor | None = None,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    step: Tensor | None = None,
    suppress: Tensor | None = None,
    begin_suppress: Tensor | None = None,
    tempered: bool = False,
    floor: Tensor | None = None,
    rows: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """token, log_prob, margin, neg_entropy, lse; arguments as in the public function, already checked, and `floor` [N]:
    logits below it count as -inf."""
    out = _outputs(logits.shape[0] if rows is None else rows.shape[0], logits.device)
    hidden = (_adjacent(suppress), _adjacent(begin_suppress))
    noise = (temperature, seeds, positions, step)
    torch.ops.dllm_kernels.gumbel_argmax(logits.detach(), *noise, *hidden, tempered, floor, rows, count, *out)
    return out


def over_slices(
    slices: Iterable[tuple[int, Tensor]],
    n: int,
    vocab_size: int,
    device: torch.device,
    temperature: Tensor | None = None,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    step: Tensor | None = None,
    suppress: Tensor | None = None,
    begin_suppress: Tensor | None = None,
    tempered: bool = False,
    count: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The results of :func:`gumbel_argmax` on logits [n, vocab_size] that arrive in slices of the vocabulary.

    `slices` yields (first token, logits [n, width]), ascending, without gaps, first tokens multiples of 4; the memory
    of a slice may be used again as soon as the next is asked for. Statistics of a slice are float32 sums of at most
    16384 tokens that are added up in float64: their last bits depend on the widths, the token does not. The other
    arguments as in the public function, per-row ones [n]. Temporaries of 40 bytes per row and 16384 tokens of a slice.

    Example:
        >>> from dllm_kernels import _impl
        >>> if not _impl.why_not_cpu():
        ...     halves = [(0, torch.zeros(1, 4)), (4, torch.ones(1, 3))]
        ...     assert over_slices(halves, 1, 7, torch.device("cpu"))[0].tolist() == [4]
    """
    out = _outputs(n, device)
    if n == 0:
        return out
    hidden = (_adjacent(suppress), _adjacent(begin_suppress))
    noise = (temperature, seeds, positions, step)
    state = torch.empty(n, _STATE, dtype=torch.float64, device=device)
    for first, logits in _checks.slices(slices, n, vocab_size, multiple=4):  # 4 tokens share a block of noise
        torch.ops.dllm_kernels.gumbel_argmax_slice(logits, first, *noise, *hidden, tempered, count, state)
        del logits  # before the next slice takes its place
    torch.ops.dllm_kernels.gumbel_argmax_end(state, temperature, tempered, *out)
    return out


def _outputs(n: int, device: torch.device) -> tuple[Tensor, ...]:
    token = torch.empty(n, dtype=torch.int64, device=device)
    return token, *(torch.empty(n, dtype=torch.float32, device=device) for _ in range(4))


def _adjacent(flags: Tensor | None) -> Tensor | None:
    return flags if flags is None else flags.contiguous()
