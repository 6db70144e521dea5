"""How kernels read logits, flags and temperatures, in Triton (in PyTorch: `logits.py`)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels.logits import STATISTICS_TEMPERATURES
from dllm_kernels.philox_triton import power_of_e

INF = tl.constexpr(float("inf"))
HIGHEST = tl.constexpr(torch.finfo(torch.float32).max)
LOG2_E = tl.constexpr(1.4426950408889634)
NOTHING = tl.constexpr(-200.0)  # e^-200 is 0 in float32: differences below it count as this, and 0 * inf never arises
_COLDEST, _HOTTEST = (tl.constexpr(T) for T in STATISTICS_TEMPERATURES)


@triton.jit
def load_logits(
    x_ptr,
    suppress_ptr,
    offs_v,
    size_v,
    floor,
    HAS_SUPPRESS: tl.constexpr,
    HAS_FLOOR: tl.constexpr = False,
    softcap=1.0,
    HAS_SOFTCAP: tl.constexpr = False,
):
    """float32 logits, with -inf for NaN and for what is suppressed, below the floor or past the end, and the largest
    finite number for +inf."""
    x = load_unbounded(x_ptr, suppress_ptr, offs_v, size_v, floor, HAS_SUPPRESS, HAS_FLOOR, True, softcap, HAS_SOFTCAP)
    return tl.minimum(tl.maximum(x, -INF), HIGHEST)  # of a number and NaN, either takes the number


@triton.jit
def load_unbounded(
    x_ptr,
    suppress_ptr,
    offs_v,
    size_v,
    floor,
    HAS_SUPPRESS: tl.constexpr,
    HAS_FLOOR: tl.constexpr,
    HAS_END: tl.constexpr,
    softcap=1.0,
    HAS_SOFTCAP: tl.constexpr = False,
):
    """As load_logits, with NaN and +inf as they are without a softcap. HAS_END: whether some of the tokens may lie past
    the end."""
    if HAS_END:
        x = tl.load(x_ptr + offs_v, mask=offs_v < size_v, other=-INF)
    else:
        x = tl.load(x_ptr + offs_v)
    if x.dtype == tl.bfloat16:
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        x = x.to(tl.float32)
    if HAS_SOFTCAP:
        x = softcapped(x, softcap)
    if HAS_SUPPRESS:
        x = hide(x, suppress_ptr, offs_v, size_v, HAS_END)
    if HAS_FLOOR:
        x = tl.where(x < floor, -INF, x)
    return x


@triton.jit
def softcapped(l, softcap):
    """c tanh(l / c), bit for bit as `logits.py` specifies it; -inf of NaN and -inf."""
    x = tl.div_rn(tl.minimum(l, HIGHEST), softcap)
    e, n, rest = power_of_e(tl.maximum(tl.abs(x) * -2.0, -87.0))
    size = tl.div_rn(tl.where(n == 0.0, -rest, 1.0 - e), 1.0 + e)
    return tl.where(l > -INF, tl.where(x < 0, -size, size) * softcap, -INF)


@triton.jit
def hide(l, hidden_ptr, offs_v, size_v, HAS_END: tl.constexpr = True):
    """Logits with -inf where a flag is set."""
    if HAS_END:
        hidden = tl.load(hidden_ptr + offs_v, mask=offs_v < size_v, other=0)
    else:
        hidden = tl.load(hidden_ptr + offs_v)
    return tl.where(hidden, -INF, l)


@triton.jit
def statistics_temperature(T):
    """The temperature at which a row is measured: T where it is above 0, within bounds, else 1."""
    return tl.where(T > 0, tl.minimum(tl.maximum(T, _COLDEST), _HOTTEST), 1.0)


@triton.jit
def exponent(difference, rate, TEMPERED: tl.constexpr):
    """(l - m) / T log2 e, the exponent of 2 of a softmax weight; at least NOTHING log2 e, also for -inf."""
    if TEMPERED:
        difference = tl.maximum(difference, -HIGHEST) * rate
    return tl.maximum(difference, NOTHING) * LOG2_E


def stride(per_row: Tensor | None) -> int:
    """The stride of an optional per-row tensor [R], 0 without one."""
    return 0 if per_row is None else per_row.stride(0)


def adjacent(x: Tensor | None) -> Tensor | None:
    """An optional tensor with its entries next to each other in memory."""
    return x if x is None else x.contiguous()
