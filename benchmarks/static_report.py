"""What every kernel takes of a GPU, and how long every operation would take at its ceilings: no GPU needed.

    python -m benchmarks.static_report [--target sm_90 ...] [--json] [--out FILE]

Nothing here is measured. A prediction is a bound from below: no launch is faster than the slowest of what it asks for,

    seconds = sum over launches of max(bytes / bandwidth, flops / rate of products, slots / rate of instructions)

with bytes, flops and slots counted from the launches (:mod:`benchmarks.launches`), and ceilings from the data sheet or
as given. Launches follow one another; what they take besides, from the host and in L2, counts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import dllm_kernels
from benchmarks import launches

# H200 SXM, data sheet: 4.8 TB/s; dense bfloat16 and float16 989 TFLOP/s, float32 67 TFLOP/s = 132 multiprocessors x 128
# lanes x 1.98 GHz x 2, so half as many issue slots
BYTES_PER_SECOND = 4.8e12
FLOPS_PER_SECOND = {"bfloat16": 989e12, "float16": 989e12, "float32": 67e12}
SLOTS_PER_SECOND = 33.5e12


class Prediction(NamedTuple):
    """A case, what its launches add up to (:class:`benchmarks.launches.Launch`), and seconds at the ceilings.

    `rows` are those of the result, `hidden` the width of hidden states (None for operations on logits), `vocab` the
    tokens. For transfer_tokens `rows` is the batch and `vocab` the window; position_noise has no `vocab`.
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
    bytes_per_second: float = BYTES_PER_SECOND,
    flops_per_second: float | None = None,
    slots_per_second: float = SLOTS_PER_SECOND,
) -> Prediction:
    """Bytes, FLOPs and issue slots of one call, counted from its launches, and its time at the given ceilings.

    The cross-entropies are counted forward and backward, the one of given logits in place; truncation_floor with
    top_p = 0.9; transfer_tokens by the rule k.

    Args:
        op: a public function of dllm_kernels.
        rows, hidden, vocab, dtype, temperature: as in :class:`Prediction`.
        target: the architecture whose block shapes are taken.
        bytes_per_second, flops_per_second, slots_per_second: ceilings; the products' by default that of `dtype`.

    Raises:
        ValueError: `op` or `dtype` is none, or a size that the operation needs is missing.

    Example:
        >>> found = predict("gumbel_argmax", rows=1024, vocab=126464)
        >>> found.launches, f"{found.seconds * 1e6:.0f} us"
        (2, '54 us')
    """
    if op not in _CALLS:
        raise ValueError(f"op must be one of {', '.join(_CALLS)}, got {op!r}")
    if dtype not in FLOPS_PER_SECOND:
        raise ValueError(f"dtype must be one of {', '.join(FLOPS_PER_SECOND)}, got {dtype!r}")
    sizes, make_call = _CALLS[op]
    for name, value, needed in (("hidden", hidden, "hidden" in sizes), ("vocab", vocab, "vocab" in sizes)):
        if needed != (value is not None):
            raise ValueError(f"{op} needs {' and '.join(sizes)}, got {name}={value}")
    shape = {name: value for name, value in (("hidden", hidden), ("vocab", vocab)) if value is not None}
    call = make_call(rows=rows, dtype=getattr(torch, dtype), noise=_noise(rows, temperature), **shape)
    found = launches.record(call, target)
    rate = flops_per_second or FLOPS_PER_SECOND[dtype]
    seconds = sum(max(x.bytes / bytes_per_second, x.flops / rate, x.slots / slots_per_second) for x in found)
    counts = (sum(getattr(x, name) for x in found) for name in ("bytes", "l2_bytes", "flops", "slots"))
    return Prediction(op, rows, hidden, vocab, dtype, float(temperature), len(found), *counts, seconds)


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
_CALLS: dict[str, tuple[tuple[str, ...], Callable[..., Callable[[], object]]]] = {
    "gumbel_argmax": (("vocab",), _gumbel_argmax),
    "linear_gumbel_argmax": (("hidden", "vocab"), _linear_gumbel_argmax),
    "truncation_floor": (("vocab",), _truncation_floor),
    "masked_cross_entropy": (("vocab",), _masked_cross_entropy),
    "linear_cross_entropy": (("hidden", "vocab"), _linear_cross_entropy),
    "transfer_tokens": (("vocab",), _transfer_tokens),
    "position_noise": ((), _position_noise),
}
