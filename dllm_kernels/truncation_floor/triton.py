"""Top-k and top-p in Triton: one program per row, passes over the row instead of a sort.

The floor t is the smallest logit with f(t) <= bound, where f(q) sums over the logits above q what a logit weighs: e^gap
against top_p of the total, or 1 against k - 1. A pass computes f at three candidates q and learns for each whether
t <= q. Two candidates cut the interval [low, high] that holds t into thirds, which is fast for logits spread as logits
are; the third halves the number of floats in it, so 32 passes are the most there can be. Besides, each pass draws the
ends in to logits of the row: once they meet, they have met in t. About 12 passes for 50,000 float32 logits, 7 for
bfloat16 ones; all but the first find the row in L2.

f is monotone although it is rounded: every sum is formed in the same order, and of addends that are not smaller a
rounded sum is not smaller. So the candidates of a pass never contradict each other.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels import _tuning
from dllm_kernels.logits_triton import HIGHEST, INF, adjacent, exponent, load_logits, statistics_temperature, stride

_VECTOR = tl.constexpr(4)  # neighbouring tokens that a thread loads at a time


@triton.jit(do_not_specialize=["R", "k", "p", "reach", "stride_tr"])
def _floor_kernel(
    x_ptr,
    temperature_ptr,
    suppress_ptr,
    rows_ptr,
    count_ptr,
    floor_ptr,
    R,
    V,
    k,
    p,
    reach,
    stride_xr,
    stride_tr,
    COLUMNS: tl.constexpr,
    HAS_K: tl.constexpr,
    HAS_P: tl.constexpr,
    TEMPERED: tl.constexpr,
    HAS_SUPPRESS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_COUNT: tl.constexpr,
):
    n = tl.program_id(0)
    row = n.to(tl.int64)
    used = row >= 0
    if HAS_COUNT:
        used = used & (n < tl.load(count_ptr))
    if HAS_ROWS:
        row = tl.load(rows_ptr + n)
        used = used & (row >= 0) & (row < R)
    size_v = tl.where(used, V, 0)  # no logits at all in a row that is not used
    x_ptr += tl.where(used, row, 0) * stride_xr
    T, rate = 1.0, 1.0
    if TEMPERED:
        T = statistics_temperature(tl.load(temperature_ptr + row * stride_tr, mask=used, other=1.0))
        rate = tl.div_rn(1.0, T)

    offs_v = tl.arange(0, COLUMNS)[:, None] * _VECTOR + tl.arange(0, _VECTOR)[None, :]
    peak = tl.full([COLUMNS], -INF, tl.float32)
    least = tl.full([COLUMNS], INF, tl.float32)
    for start in range(0, size_v, COLUMNS * _VECTOR):
        l = load_logits(x_ptr, suppress_ptr, start + offs_v, size_v, 0.0, HAS_SUPPRESS)
        peak = tl.maximum(peak, tl.max(l, axis=1))
        least = tl.minimum(least, tl.min(tl.where(l > -INF, l, INF), axis=1))
    high, low = tl.max(peak, axis=0), tl.min(least, axis=0)

    m = tl.maximum(high, -HIGHEST)
    floor = high
    if HAS_P:
        total, _, _, _, _ = _above(
            *(x_ptr, suppress_ptr, offs_v, size_v, m, rate, low, high, -INF, INF, INF),
            *(TEMPERED, True, HAS_SUPPRESS, COLUMNS),
        )
        # l < m - T ln(V / (1 - p)) weighs less than 1 - p altogether; below the float before, whatever was rounded
        low_p = tl.maximum(low, _after(tl.maximum(m - T * reach, -HIGHEST), -1))
        floor = _search(
            *(x_ptr, suppress_ptr, offs_v, size_v, m, rate, low_p, high, p * total),
            *(TEMPERED, True, HAS_SUPPRESS, COLUMNS),
        )
        low = floor
    if HAS_K:
        floor = _search(
            *(x_ptr, suppress_ptr, offs_v, size_v, m, rate, low, high, k - 1),
            *(TEMPERED, False, HAS_SUPPRESS, COLUMNS),
        )
    tl.store(floor_ptr + n, floor)


@triton.jit
def _search(
    x_ptr,
    suppress_ptr,
    offs_v,
    size_v,
    m,
    rate,
    low,
    high,
    bound,
    TEMPERED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    HAS_SUPPRESS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The smallest logit of [low, high] above which there is at most `bound`; `high` is such a logit, or -inf."""
    while low < high:
        q1 = low * (2 / 3) + high * (1 / 3)
        q2 = low * (1 / 3) + high * (2 / 3)
        q3 = _halfway(low, high)
        f1, f2, f3, lowest, highest = _above(
            *(x_ptr, suppress_ptr, offs_v, size_v, m, rate, low, high, q1, q2, q3),
            *(TEMPERED, WEIGHTED, HAS_SUPPRESS, COLUMNS),
        )
        low, high = tl.maximum(low, lowest), tl.minimum(high, highest)
        low, high = _cut(low, high, q1, f1 <= bound)
        low, high = _cut(low, high, q2, f2 <= bound)
        low, high = _cut(low, high, q3, f3 <= bound)
    return high


@triton.jit
def _cut(low, high, q, at_most_q):
    """[low, high] without what t is not: above q, or up to q."""
    return tl.where(at_most_q, low, tl.maximum(low, _after(q, 1))), tl.where(at_most_q, tl.minimum(high, q), high)


@triton.jit
def _above(
    x_ptr,
    suppress_ptr,
    offs_v,
    size_v,
    m,
    rate,
    low,
    high,
    q1,
    q2,
    q3,
    TEMPERED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    HAS_SUPPRESS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """f at each candidate, the smallest logit from `low` on, the largest up to `high`."""
    f1 = tl.zeros([COLUMNS], tl.float32 if WEIGHTED else tl.int32)
    f2, f3 = f1, f1
    lowest = tl.full([COLUMNS], INF, tl.float32)
    highest = tl.full([COLUMNS], -INF, tl.float32)
    for start in range(0, size_v, COLUMNS * _VECTOR):
        l = load_logits(x_ptr, suppress_ptr, start + offs_v, size_v, 0.0, HAS_SUPPRESS)
        if WEIGHTED:
            weight = tl.exp2(exponent(l - m, rate, TEMPERED))
            f1 += tl.sum(tl.where(l > q1, weight, 0.0), axis=1)
            f2 += tl.sum(tl.where(l > q2, weight, 0.0), axis=1)
            f3 += tl.sum(tl.where(l > q3, weight, 0.0), axis=1)
        else:
            f1 += tl.sum((l > q1).to(tl.int32), axis=1)
            f2 += tl.sum((l > q2).to(tl.int32), axis=1)
            f3 += tl.sum((l > q3).to(tl.int32), axis=1)
        lowest = tl.minimum(lowest, tl.min(tl.where(l >= low, l, INF), axis=1))
        highest = tl.maximum(highest, tl.max(tl.where(l <= high, l, -INF), axis=1))
    f1, f2, f3 = tl.sum(f1, axis=0), tl.sum(f2, axis=0), tl.sum(f3, axis=0)
    return f1, f2, f3, tl.min(lowest, axis=0), tl.max(highest, axis=0)


@triton.jit
def _order(x):
    """The int32 that sorts as the float32 x does."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)  # -0.0 ties with 0.0
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _number(order):
    return tl.where(order < 0, order ^ 0x7FFFFFFF, order).to(tl.float32, bitcast=True)


@triton.jit
def _after(x, steps):
    """The float32 so many places after x."""
    return _number(_order(x) + steps)


@triton.jit
def _halfway(low, high):
    """From `low` on and below `high`, as many float32 on either side."""
    a, b = _order(low), _order(high)
    return _number((a >> 1) + (b >> 1) + (a & b & 1))


def truncation_floor(
    logits: Tensor,
    temperature: Tensor | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    suppress: Tensor | None = None,
    rows: Tensor | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """The smallest logit that is kept, [N]; arguments as in the public function, already checked. One launch."""
    n, vocab_size = len(logits) if rows is None else len(rows), logits.shape[1]
    if n == 0 or len(logits) == 0 or (top_k is None and top_p is None):
        return torch.full((n,), -math.inf, device=logits.device)
    floor = torch.empty(n, dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):
        COLUMNS, num_warps = _tuning.truncation_floor()
        _floor_kernel[(n,)](
            x_ptr=logits,
            temperature_ptr=temperature,
            suppress_ptr=adjacent(suppress),
            rows_ptr=adjacent(rows),
            count_ptr=count,
            floor_ptr=floor,
            R=len(logits),
            V=vocab_size,
            k=top_k or 0,
            p=top_p or 0.0,
            reach=math.log(vocab_size) + 24 * math.log(2) + 1,  # 1 - p is at least 2^-24 in float32; 1 to spare
            stride_xr=logits.stride(0),
            stride_tr=stride(temperature),
            COLUMNS=COLUMNS,
            HAS_K=top_k is not None,
            HAS_P=top_p is not None,
            TEMPERED=temperature is not None,
            HAS_SUPPRESS=suppress is not None,
            HAS_ROWS=rows is not None,
            HAS_COUNT=count is not None,
            num_warps=num_warps,
            num_stages=1,
            enable_fp_fusion=False,  # sums in the order they are written in, on every device
        )
    return floor
