"""What tuning measures: for each table of :mod:`dllm_kernels._tuning` calls on the shapes that matter, and how close a
candidate's results must be to the table's. The same calls run on meta tensors, to be compiled only."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels import draw

Call = Callable[[], tuple[Tensor, ...]]


class Work(NamedTuple):
    """One shape that a table's choice is measured on.

    make: device -> a call on inputs there. agrees: whether a candidate's results will do beside the table's; besides
    both it is given the call, whose inputs may be needed to judge.
    """

    name: str
    make: Callable[[str], Call]
    agrees: Callable[[tuple[Tensor, ...], tuple[Tensor, ...], Call], bool]


def works(table: str) -> Iterator[Work]:
    """The shapes on which a table is tuned: those of ModernBERT-large, LLaDA-8B and Dream-7B.

    Example:
        >>> [work.name for work in works("fused_head_16")][0]
        '16 x 1024 x 50368 bfloat16, T 0'
    """
    if table == "gumbel_argmax":
        for rows, vocab in ((64, 50368), (64, 126464), (1024, 126464)):
            for dtype in ("bfloat16", "float32"):
                for T in (0.0, 1.0):
                    name = f"{rows} x {vocab} {dtype}, T {T:g}"
                    yield Work(name, partial(_gumbel_argmax, rows, vocab, dtype, T), _same_tokens)
    elif table == "truncation_floor":
        for rows, vocab in ((64, 50368), (64, 152064), (1024, 50368)):
            yield Work(f"{rows} x {vocab} bfloat16", partial(_truncation_floor, rows, vocab), _same_bits)
    elif table == "masked_cross_entropy":
        for rows, vocab in ((1024, 50368), (1024, 126464)):
            yield Work(f"{rows} x {vocab} bfloat16", partial(_masked_cross_entropy, rows, vocab), _no_worse)
    elif table == "transfer_tokens":
        for rows, window in ((8, 64), (64, 64), (8, 512), (8, 2048)):
            yield Work(f"{rows} x {window}", partial(_transfer_tokens, rows, window), _same_bits)
    else:
        fused = table != "fused_rows"
        agrees = _same_bits if fused else _same_tokens_but_near_ties
        for rows in (int(table.rpartition("_")[2]),) if fused else (16, 32):
            for width, vocab in ((1024, 50368), (4096, 126464), (3584, 152064)):
                for T in (0.0, 1.0):
                    name = f"{rows} x {width} x {vocab} bfloat16, T {T:g}"
                    yield Work(name, partial(_head, fused, rows, width, vocab, T), agrees)


def _same_bits(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], call: Call) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def _same_tokens(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], call: Call) -> bool:
    return torch.equal(got[0], expected[0])


def _same_tokens_but_near_ties(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], call: Call) -> bool:
    """Of two plans of the head, whose logits are rounded differently: where tokens differ, rounding can have turned
    them around. Each plan rounds a logit to bfloat16 by at most eps / 2 of it, up or down."""
    (row,) = (got[0] != expected[0]).nonzero(as_tuple=True)
    if (got[0] < 0).any():
        return False
    (low, high, one), (low_of_other, high_of_other, other) = (
        _scores_between(token[row], row, *call.args, **call.keywords) for token in (got[0], expected[0])
    )
    return bool((one & other & (low <= high_of_other) & (low_of_other <= high)).all())


def _scores_between(
    token: Tensor, row: Tensor, hidden: Tensor, weight: Tensor, **noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The lowest and the highest score that each token's tile can have by rounded logits, and whether the token can be
    the best of its tile. Without noise of the token's logit, and true."""
    tile = draw.tile_of(token)[:, None]
    tokens = draw.tokens_of(tile[:, 0]) if noise else token[:, None]
    beyond = tokens >= len(weight)
    logits = (hidden[row, None].double() * weight[tokens.masked_fill(beyond, 0)].double()).sum(dim=-1)
    rounding = torch.finfo(torch.bfloat16).eps / 2 * logits.abs()
    low, high = ((logits + change).masked_fill(beyond, -torch.inf) for change in (-rounding, rounding))
    if not noise:
        return low[:, 0], high[:, 0], torch.ones_like(token, dtype=torch.bool)
    T = draw.clamped(noise["temperature"][row].double())
    where = [noise[name][row] for name in ("seeds", "positions", "step")]
    G, g = draw.tile_noise(tile, *where)[:, 0], draw.token_noise(tokens, *where)
    of_rivals, own = draw.token_score(low, T[:, None], g).amax(dim=1), draw.token_score(high, T[:, None], g)
    possible = own[tokens == token[:, None]] >= of_rivals
    return draw.tile_score(low, T, G), draw.tile_score(high, T, G), possible


def _no_worse(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], call: Call) -> bool:
    """The error of nll against float64 is at most twice that of float32 PyTorch: a call returns all three. Gradients,
    rounded to bfloat16 from float32 numbers that are nearly the same, are at most neighbors."""
    nll, gradient, plain, true = got
    error, of_plain = (((x.double() - true).abs() / true.abs().amax()).max() for x in (nll, plain))
    apart = (gradient.float() - expected[1].float()).abs()
    neighbors = apart <= torch.finfo(gradient.dtype).eps * torch.maximum(gradient.abs(), expected[1].abs()).float()
    return bool(error <= 2 * of_plain.clamp(min=torch.finfo(torch.float32).eps)) and bool(neighbors.all())


def _normal(*shape: int, dtype: str, device: str, scale: float = 3.0) -> Tensor:
    return (torch.randn(shape, device=device) * scale).to(getattr(torch, dtype))


def _noise(rows: int, T: float, device: str) -> dict[str, Tensor]:
    if T == 0:
        return {}
    per_row = torch.arange(rows, device=device)
    return dict(temperature=torch.full((rows,), T, device=device), seeds=per_row, positions=per_row, step=per_row)


def _gumbel_argmax(rows: int, vocab: int, dtype: str, T: float, device: str) -> Call:
    from dllm_kernels.gumbel_argmax import triton as kernels

    return partial(kernels.gumbel_argmax, _normal(rows, vocab, dtype=dtype, device=device), **_noise(rows, T, device))


def _head(fused: bool, rows: int, width: int, vocab: int, T: float, device: str) -> Call:
    from dllm_kernels.linear_gumbel_argmax import triton as kernels

    hidden = _normal(rows, width, dtype="bfloat16", device=device, scale=1.0)
    weight = _weight(width, vocab, device)
    noise = _noise(rows, T, device)
    if fused:
        return partial(kernels.fused_head, hidden, weight, None, None, None, **noise)
    return partial(kernels.linear_gumbel_argmax, hidden, weight, **noise)


@functools.cache
def _weight(width: int, vocab: int, device: str) -> Tensor:
    """One for all rows and temperatures: it is a gigabyte."""
    return _normal(vocab, width, dtype="bfloat16", device=device, scale=3 / width**0.5)


def _truncation_floor(rows: int, vocab: int, device: str) -> Call:
    from dllm_kernels.truncation_floor import triton as kernels

    logits = _normal(rows, vocab, dtype="bfloat16", device=device)
    return lambda: (kernels.truncation_floor(logits, top_p=0.9),)


def _masked_cross_entropy(rows: int, vocab: int, device: str) -> Call:
    from dllm_kernels.masked_cross_entropy import triton as kernels

    logits = _normal(rows, vocab, dtype="bfloat16", device=device)
    targets = torch.arange(rows, device=device)
    weight, gradient = torch.ones(rows, device=device), torch.empty_like(logits)
    plain, true = (
        F.cross_entropy(logits.to(dtype), targets, reduction="none") for dtype in (torch.float32, torch.float64)
    )

    def call() -> tuple[Tensor, ...]:
        nll = kernels.masked_cross_entropy(logits, targets, weight, weight, gradient, 0.0, 0.0, None)
        return nll, gradient, plain, true

    return call


def _transfer_tokens(rows: int, window: int, device: str) -> Call:
    from dllm_kernels.transfer_tokens import triton as kernels

    canvas = torch.zeros(rows, window, dtype=torch.int64, device=device)
    proposals = torch.arange(1, window + 1, device=device).expand(rows, window).contiguous()
    confidence = _normal(rows, window, dtype="float32", device=device)
    k, start = (torch.full((rows,), n, device=device) for n in (window // 2, 0))
    length = torch.full((rows,), window, device=device)
    rule = dict(mask_id=0, k=k, threshold=None, factor=None, budget=None, start=start, length=length)

    def call() -> tuple[Tensor, ...]:
        now = canvas.clone()
        return now, kernels.transfer_tokens(now, proposals, confidence, **rule)

    return call
