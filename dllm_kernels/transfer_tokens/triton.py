"""Transfer in Triton: one launch for the batch, one program per row.

Every rule comes down to a number n: the n surest of the eligible columns are committed, ties to the lowest column.
Nothing is sorted: the n-th largest confidence is found bit by bit, in the uint32 that sorts as float32 does, by 32
counts. Of the columns that tie with it, the first ones fill up.

The rule `factor` asks for the longest prefix with c_r >= b_r, b_r = 1 - f / (r + 1). As c_r falls and b_r rises with r,
also when rounded, rank r is in exactly if at least r columns have c >= b_r: n is found by bisection.

The rule `budget` is over at the confidence u whose columns, with all surer ones, first cost more than gamma: found bit
by bit too, by sums instead of counts. Columns that tie at u cost the same, so n follows by a division.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels import _tuning
from dllm_kernels.transfer_tokens import api

_INF = tl.constexpr(float("inf"))
_SIGN = tl.constexpr(2**31)
_COST_CAP, _COST_UNIT = tl.constexpr(api.COST_CAP), tl.constexpr(api.COST_UNIT)


@triton.jit(do_not_specialize=["mask_id", "budget", "L", "W", "stride_kb", "stride_sb", "stride_nb"])
def _transfer_kernel(
    canvas_ptr,
    proposals_ptr,
    confidence_ptr,
    k_ptr,
    start_ptr,
    length_ptr,
    committed_ptr,
    mask_id,
    bar,
    budget,
    L,
    W,
    stride_cb,
    stride_pb,
    stride_pw,
    stride_fb,
    stride_fw,
    stride_kb,
    stride_sb,
    stride_nb,
    BLOCK_W: tl.constexpr,
    RULE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offs_w = tl.arange(0, BLOCK_W)
    column = tl.load(start_ptr + row * stride_sb) + offs_w
    used = tl.load(length_ptr + row * stride_nb)
    inside = (offs_w < W) & (offs_w < used) & (column >= 0) & (column < L)
    canvas_ptr += row * stride_cb + column
    current = tl.load(canvas_ptr, mask=inside, other=0)
    proposal = tl.load(proposals_ptr + row * stride_pb + offs_w * stride_pw, mask=inside, other=-1)
    c = tl.load(confidence_ptr + row * stride_fb + offs_w * stride_fw, mask=inside, other=-_INF)
    c = tl.where(c == c, c, -_INF)
    eligible = inside & (current == mask_id) & (proposal >= 0)
    available = _count(eligible)

    order = _order(c)
    n = tl.minimum(tl.maximum(tl.load(k_ptr + row * stride_kb), 0), available).to(tl.int32)
    if RULE == "threshold":
        n = tl.maximum(n, _count(eligible & (c >= bar)))
    elif RULE == "budget":
        n = tl.maximum(n, _affordable(eligible, order, c, budget.to(tl.int64)))
    elif RULE == "factor":
        high = available  # and k is where the search begins
        while n < high:
            r = (n + high + 1) // 2
            enough = 1.0 - tl.div_rn(bar, (r + 1).to(tl.float32))
            reached = _count(eligible & (c >= enough)) >= r
            n = tl.where(reached, r, n)
            high = tl.where(reached, high, r - 1)

    cut = _cut(eligible.to(tl.int32), order, n)
    tied = eligible & (order == cut)
    room = n - _count(eligible & (order > cut))
    commit = (eligible & (order > cut)) | (tied & (tl.cumsum(tied.to(tl.int32), axis=0) <= room))

    tl.store(canvas_ptr, proposal, mask=commit)
    tl.store(committed_ptr + row, n.to(tl.int64))


@triton.jit
def _count(mask):
    return tl.sum(mask.to(tl.int32), axis=0)


@triton.jit
def _cut(weight, order, enough):
    """The largest order, from its highest bit down, such that what lies at or above it weighs enough; 0 if none does.

    With weights of 1 and enough = n, the n-th largest order.
    """
    cut = tl.full([], 0, tl.uint32)
    for i in range(32):
        candidate = cut | (tl.full([], _SIGN, tl.uint32) >> i)
        cut = tl.where(tl.sum(tl.where(order >= candidate, weight, 0), axis=0) >= enough, candidate, cut)
    return cut


@triton.jit
def _affordable(eligible, order, c, budget):
    """The number of ranks before which the costs sum to at most the budget, in units of 2^-32 nat."""
    cost = (tl.minimum(tl.maximum(-c, 0.0), _COST_CAP) * (1 / _COST_UNIT)).to(tl.int64)
    cost = tl.where(eligible, cost, 0)
    cut = _cut(cost, order, budget + 1)  # no eligible order is 0: there, all of them are affordable
    left = budget - tl.sum(tl.where(order > cut, cost, 0), axis=0)
    each = tl.max(tl.where(order == cut, cost, 1), axis=0)
    surer = _count(eligible & (order > cut))
    return tl.where(cut == 0, surer, surer + (left // each + 1).to(tl.int32))


@triton.jit
def _order(c):
    """The uint32 that sorts as the float32 c does: the sign bit set if c >= 0, all bits flipped if c < 0."""
    bits = tl.where(c == 0, 0.0, c).to(tl.uint32, bitcast=True)  # -0.0 ties with 0.0
    return tl.where(bits >> 31 == 0, bits | 2147483648, bits ^ 0xFFFFFFFF)


def transfer_tokens(
    canvas: Tensor,
    proposals: Tensor,
    confidence: Tensor,
    *,
    mask_id: int,
    k: Tensor,
    threshold: float | None,
    factor: float | None,
    budget: int | None,
    start: Tensor,
    length: Tensor,
) -> Tensor:
    """Commit in place and return the number committed per row; arguments as in the public function, already checked."""
    (batch, columns), window = canvas.shape, proposals.shape[1]
    if batch == 0 or columns == 0 or window == 0:
        return torch.zeros(batch, dtype=torch.int64, device=canvas.device)
    committed = torch.empty(batch, dtype=torch.int64, device=canvas.device)
    rules = {"threshold": threshold, "factor": factor, "budget": budget}
    rule = next((name for name, value in rules.items() if value is not None), "k")
    with torch.cuda.device_of(canvas):
        BLOCK_W, num_warps = _tuning.transfer_tokens(window)
        _transfer_kernel[(batch,)](
            canvas_ptr=canvas,
            proposals_ptr=proposals,
            confidence_ptr=confidence,
            k_ptr=k,
            start_ptr=start,
            length_ptr=length,
            committed_ptr=committed,
            mask_id=mask_id,
            bar=0.0 if rule in ("k", "budget") else rules[rule],
            budget=budget or 0,
            L=columns,
            W=window,
            stride_cb=canvas.stride(0),
            stride_pb=proposals.stride(0),
            stride_pw=proposals.stride(1),
            stride_fb=confidence.stride(0),
            stride_fw=confidence.stride(1),
            stride_kb=k.stride(0),
            stride_sb=start.stride(0),
            stride_nb=length.stride(0),
            BLOCK_W=BLOCK_W,
            RULE=rule,
            num_warps=num_warps,
            num_stages=1,
            enable_fp_fusion=False,  # the bar of `factor` is rounded as the specification rounds it
        )
    return committed
