"""Library products around the kernels of gumbel_argmax: logits exist for a slice of the vocabulary, or of the rows.
Slices of rows are the same on every kind of device; those of the vocabulary are for GPUs (what a CPU does instead:
csrc/linear_gumbel_argmax.cpp)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dllm_kernels._linear import linear
from dllm_kernels.gumbel_argmax.api import gumbel_argmax

PER_ROW = ("temperature", "seeds", "positions", "step")


def choose(hidden: Tensor, unconditional: Tensor | None, cfg_scale: float, rows: Tensor | None) -> Tensor:
    """Hidden states [R, H] of the result's rows, guided: h + s (h - u) in float32, rounded once to the dtype.

    A row that is out of range is NaN, so that its logits are and it has nothing to choose.

    Example:
        >>> choose(torch.tensor([[1.0], [2.0]]), None, 0.0, torch.tensor([1, 7]))
        tensor([[2.],
                [nan]])
    """
    if rows is None:
        return hidden if unconditional is None else torch.lerp(unconditional, hidden, 1 + cfg_scale)
    if len(hidden) == 0:
        return hidden.new_full((len(rows), hidden.shape[1]), torch.nan)
    source = rows.clamp(0, len(hidden) - 1)
    chosen = hidden.index_select(0, source)
    if unconditional is not None:
        chosen = torch.lerp(unconditional.index_select(0, source), chosen, 1 + cfg_scale)
    return chosen.masked_fill_((source != rows)[:, None], torch.nan)


def by_tokens(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    count: Tensor | None,
    block_r: int,
    width: int,
    over_slices: Callable[..., tuple[Tensor, ...]],
    **options: Tensor | bool | None,
) -> tuple[Tensor, ...]:
    """The six results by slices of `width` tokens, for at most `block_r` rows at a time."""

    def reduce(rows: slice, count: Tensor | None, options: dict) -> tuple[Tensor, ...]:
        h = hidden[rows]
        slices = _slices(h, weight, bias, width)
        return over_slices(slices, len(h), len(weight), h.device, count=count, **options)

    return by_blocks(len(hidden), block_r, count, options, reduce)


def by_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    count: Tensor | None,
    block_r: int,
    *,
    impl: str,
    tempered: bool = False,
    top_k: int | None = None,
    top_p: float | None = None,
    **options: Tensor | None,
) -> tuple[Tensor, ...]:
    """The six results by logits of at most `block_r` whole rows, which is what top_k and top_p cut."""
    statistics = "tempered" if tempered else "raw"
    room = hidden.new_empty(min(block_r, len(hidden)) * len(weight)) if hidden.is_cuda else None

    def reduce(rows: slice, count: Tensor | None, options: dict) -> tuple[Tensor, ...]:
        temperature = options.pop("temperature", None)
        return gumbel_argmax(
            _product(hidden[rows], weight, bias, room),
            temperature=0.0 if temperature is None else temperature,
            statistics=statistics,
            top_k=top_k,
            top_p=top_p,
            count=count,
            impl=impl,
            **options,
        )

    return by_blocks(len(hidden), block_r, count, options, reduce)


def fitting(n_bytes: int, each: int, multiple: int) -> int:
    """How many things of `each` bytes fit into `n_bytes`, a multiple of `multiple` and at least that.

    Example:
        >>> fitting(100, 3, 8)
        32
    """
    return max(n_bytes // max(each, 1) // multiple, 1) * multiple


def by_blocks(
    n: int, block_r: int, count: Tensor | None, options: dict, reduce: Callable[..., tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Blocks of rows one after the other, as even as multiples of 16 make them: on GPUs libraries switch algorithms for
    very few rows, and the last bits with them."""
    blocks = max(-(-n // block_r), 1)
    block_r = -(-n // (16 * blocks)) * 16
    parts = []
    for begin in range(0, max(n, 1), max(block_r, 1)):
        rows = slice(begin, begin + block_r)
        mine = {name: x[rows] if name in PER_ROW and x is not None else x for name, x in options.items()}
        parts.append(reduce(rows, count if count is None or begin == 0 else count - begin, mine))
    return tuple(map(torch.cat, zip(*parts, strict=True))) if len(parts) > 1 else tuple(parts[0])


def _slices(hidden: Tensor, weight: Tensor, bias: Tensor | None, width: int) -> Iterator[tuple[int, Tensor]]:
    """(first token, logits [n, width]) over the vocabulary, on a GPU all in the same memory."""
    room = hidden.new_empty(len(hidden) * min(width, len(weight))) if hidden.is_cuda else None
    for first in range(0, len(weight), width):
        tokens = slice(first, first + width)
        yield first, _product(hidden, weight[tokens], None if bias is None else bias[tokens], room)


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None, room: Tensor | None) -> Tensor:
    """Logits [n, V], in the memory `room` if there is one."""
    if room is None:
        return linear(hidden, weight, bias)
    out = room[: len(hidden) * len(weight)].view(len(hidden), len(weight))
    if bias is None:
        return torch.mm(hidden, weight.t(), out=out)
    return torch.addmm(bias, hidden, weight.t(), out=out)
