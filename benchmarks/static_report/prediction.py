"""Predicted time of an operation on a GPU, from its launches and the GPU's ceilings. Nothing here is measured.

A prediction is a lower bound: no launch is faster than its slowest resource,

    seconds = sum over launches of max(bytes / bandwidth, flops / rate of products, slots / rate of instructions)

with bytes, flops and slots counted from the launches (:mod:`.launches`), and ceilings from the data sheet or as given.
A launch with fewer programs than the GPU has multiprocessors issues instructions on these only. Launches do not
overlap; time of the host and of the L2 cache is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

import dllm_kernels
from benchmarks.kernels import cases as measured
from benchmarks.static_report import launches

HEADS = tuple(size for name, size in measured.HEADS.items() if name in (*measured.FIRST, *measured.OTHERS))
ISSUED = 4 * 32  # threads per cycle of a multiprocessor: four warps


class Ceilings(NamedTuple):
    """Highest speeds of a GPU, per second, and its number of multiprocessors.

    bytes: of memory. flops: of products in bfloat16 and float16. flops_float32: of products in float32 without tensor
    cores, two for each lane and cycle. lanes: of a multiprocessor.
    """

    gpu: str
    multiprocessors: int
    bytes: float
    flops: float
    flops_float32: float
    lanes: int

    @property
    def slots(self) -> float:
        """Issue slots per second: cycles times the threads of the four warps that can issue in each cycle."""
        return self.flops_float32 / 2 / self.lanes * ISSUED


# data sheets of NVIDIA; dense products
CEILINGS = {
    "sm_80": Ceilings("A100 SXM 80 GB", 108, 2.039e12, 312e12, 19.5e12, lanes=64),
    "sm_90": Ceilings("H200 SXM", 132, 4.8e12, 989e12, 67e12, lanes=128),
    "sm_100": Ceilings("B200", 148, 7.7e12, 2250e12, 75e12, lanes=128),
}
DTYPES = ("bfloat16", "float16", "float32")


class Prediction(NamedTuple):
    """A case, the sums over its launches (:class:`.launches.Launch`), and its seconds at the ceilings.

    rows: of the result. hidden: width of hidden states; None for operations on logits. vocab: number of tokens. For
    transfer_tokens `rows` is the batch and `vocab` the window; position_noise has no `vocab`.
    """

    op: str
    rows: int
    hidden: int | None
    vocab: int | None
    dtype: str
    temperature: float
    launches: int
    bytes: int
    l2_bytes: int
    flops: int
    slots: int
    seconds: float


def predict(
    op: str,
    *,
    rows: int,
    hidden: int | None = None,
    vocab: int | None = None,
    dtype: str = "bfloat16",
    temperature: float = 0.0,
    target: str = "sm_90",
    bytes_per_second: float | None = None,
    flops_per_second: float | None = None,
    slots_per_second: float | None = None,
    compiled: bool = False,
) -> Prediction:
    """Bytes, FLOPs and issue slots of one call, counted from its launches, and its time at the given ceilings.

    Cross-entropies are counted forward and backward, masked_cross_entropy in place; truncation_floor has top_p = 0.9,
    transfer_tokens commits k tokens.

    Args:
        op: a public function of dllm_kernels.
        rows, hidden, vocab, dtype, temperature: as in :class:`Prediction`.
        target: the architecture, which also selects the block shapes.
        bytes_per_second, flops_per_second, slots_per_second: ceilings; by default those of :data:`CEILINGS`
            for the target and `dtype`.
        compiled: compile the kernels and count all their instructions, not only those of the random numbers.

    Raises:
        ValueError: `op`, `dtype` or `target` is unknown, or a size that the operation needs is missing.

    Example:
        >>> found = predict("gumbel_argmax", rows=1024, vocab=126464)
        >>> found.launches, f"{found.seconds * 1e6:.0f} us"
        (2, '54 us')
    """
    if op not in CALLS:
        raise ValueError(f"op must be one of {', '.join(CALLS)}, got {op!r}")
    for name, value, known in (("dtype", dtype, DTYPES), ("target", target, CEILINGS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    sizes, _ = CALLS[op]
    for name, value, needed in (("hidden", hidden, "hidden" in sizes), ("vocab", vocab, "vocab" in sizes)):
        if needed != (value is not None):
            raise ValueError(f"{op} needs {' and '.join(sizes)}, got {name}={value}")
    shape = {name: value for name, value in (("hidden", hidden), ("vocab", vocab)) if value is not None}
    found = launches.record(make_call(op, rows, dtype, temperature, **shape), target, compiled=compiled)
    ceilings = CEILINGS[target]
    bandwidth, issue = bytes_per_second or ceilings.bytes, slots_per_second or ceilings.slots
    multiply = flops_per_second or (ceilings.flops_float32 if dtype == "float32" else ceilings.flops)
    seconds = 0.0
    for x in found:
        share = min(1.0, math.prod(x.grid) / ceilings.multiprocessors)
        seconds += max(x.bytes / bandwidth, x.flops / multiply, x.slots / (issue * share))
    counts = (sum(getattr(x, name) for x in found) for name in ("bytes", "l2_bytes", "flops", "slots"))
    return Prediction(op, rows, hidden, vocab, dtype, float(temperature), len(found), *counts, seconds)


def make_call(op: str, rows: int, dtype: str, temperature: float, **sizes: int) -> Callable[[], object]:
    """A call of an operation on meta tensors; arguments as in :class:`Prediction`."""
    return CALLS[op][1](rows=rows, dtype=getattr(torch, dtype), noise=_noise(rows, temperature), **sizes)


def cases() -> Iterator[dict[str, object]]:
    """Arguments of :func:`predict` for every operation on the shapes of known models.

    Example:
        >>> next(cases())
        {'op': 'gumbel_argmax', 'rows': 1, 'vocab': 50368, 'dtype': 'bfloat16', 'temperature': 0.0}
    """
    noise = [dict(temperature=0.0), dict(temperature=1.0)]
    heads = [dict(hidden=hidden, vocab=vocab) for hidden, vocab in HEADS]
    vocabularies = [dict(vocab=vocab) for vocab in dict.fromkeys(vocab for _, vocab in HEADS)]
    half, single = [dict(dtype="bfloat16")], [dict(dtype="float32")]
    yield from _every("gumbel_argmax", (1, 64, 1024), vocabularies, half + single, noise)
    yield from _every("linear_gumbel_argmax", (1, 16, 32, 64, 128, 256, 1024), heads, half, noise)
    yield from _every("truncation_floor", (64, 1024), vocabularies, half)
    yield from _every("masked_cross_entropy", (1024, 4096, 8192), vocabularies, half)
    yield from _every("linear_cross_entropy", (1024, 4096, 8192), heads, half)
    yield from _every("transfer_tokens", (1, 8, 64), [dict(vocab=window) for window in (32, 64, 512)], single)
    yield from _every("position_noise", (512, 65536), single)


def _every(op: str, rows: Iterable[int], *choices: list[dict[str, object]]) -> Iterator[dict[str, object]]:
    for n, *chosen in product(rows, *choices):
        case = {"op": op, "rows": n}
        for part in chosen:
            case |= part
        yield case


def _meta(*shape: int, dtype: torch.dtype = torch.int64, gradient: bool = False) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=gradient)


def _noise(rows: int, temperature: float) -> dict[str, object]:
    if temperature == 0:
        return {"temperature": 0.0}
    per_row = {name: _meta(rows) for name in ("seeds", "positions", "step")}
    return {"temperature": _meta(1, dtype=torch.float32).expand(rows), **per_row}


def _gumbel_argmax(rows: int, vocab: int, dtype: torch.dtype, noise: dict) -> Callable[[], object]:
    return partial(dllm_kernels.gumbel_argmax, _meta(rows, vocab, dtype=dtype), **noise)


def _linear_gumbel_argmax(rows: int, hidden: int, vocab: int, dtype: torch.dtype, noise: dict) -> Callable[[], object]:
    head = _meta(rows, hidden, dtype=dtype), _meta(vocab, hidden, dtype=dtype)
    return partial(dllm_kernels.linear_gumbel_argmax, *head, **noise)


def _truncation_floor(rows: int, vocab: int, dtype: torch.dtype, noise: dict) -> Callable[[], object]:
    logits, temperature = _meta(rows, vocab, dtype=dtype), noise["temperature"]
    return partial(dllm_kernels.truncation_floor, logits, top_p=0.9, temperature=temperature)


def _masked_cross_entropy(rows: int, vocab: int, dtype: torch.dtype, noise: dict) -> Callable[[], object]:
    logits = _meta(rows, vocab, dtype=dtype, gradient=True)
    call = partial(dllm_kernels.masked_cross_entropy, logits, *_targets(rows), inplace=True)
    return partial(_forward_and_backward, call, (logits,))


def _linear_cross_entropy(rows: int, hidden: int, vocab: int, dtype: torch.dtype, noise: dict) -> Callable[[], object]:
    head = _meta(rows, hidden, dtype=dtype, gradient=True), _meta(vocab, hidden, dtype=dtype, gradient=True)
    return partial(_forward_and_backward, partial(dllm_kernels.linear_cross_entropy, *head, *_targets(rows)), head)


def _transfer_tokens(rows: int, vocab: int, dtype: torch.dtype, noise: dict) -> Callable[[], object]:
    window = _meta(rows, vocab), _meta(rows, vocab), _meta(rows, vocab, dtype=torch.float32)
    return partial(dllm_kernels.transfer_tokens, *window, mask_id=0, k=_meta(rows))


def _position_noise(rows: int, dtype: torch.dtype, noise: dict) -> Callable[[], object]:
    return partial(dllm_kernels.position_noise, _meta(rows), _meta(rows), _meta(rows))


def _targets(rows: int) -> tuple[Tensor, Tensor]:
    return _meta(rows), _meta(rows, dtype=torch.float32)


def _forward_and_backward(call: Callable[[], tuple[Tensor, Tensor]], inputs: tuple[Tensor, ...]) -> object:
    loss, nll = call()
    return nll, torch.autograd.grad(loss, inputs)


# op: the sizes it needs, and its call on meta tensors
CALLS: dict[str, tuple[tuple[str, ...], Callable[..., Callable[[], object]]]] = {
    "gumbel_argmax": (("vocab",), _gumbel_argmax),
    "linear_gumbel_argmax": (("hidden", "vocab"), _linear_gumbel_argmax),
    "truncation_floor": (("vocab",), _truncation_floor),
    "masked_cross_entropy": (("vocab",), _masked_cross_entropy),
    "linear_cross_entropy": (("hidden", "vocab"), _linear_cross_entropy),
    "transfer_tokens": (("vocab",), _transfer_tokens),
    "position_noise": ((), _position_noise),
}
