"""Transfer in Triton: one launch for the batch, one program per row.

Every rule comes down to a number n: the n surest of the eligible columns are committed, ties to the lowest column.
Nothing is sorted: the n-th largest confidence is found bit by bit, in the uint32 that sorts as float32 does, by 32
counts. Of the columns that tie with it, the first ones fill up.

The rule `factor` asks for the longest prefix with c_r >= b_r, b_r = 1 - f / (r + 1). As c_r falls and b_r rises with r,
also when rounded, rank r is in exactly if at least r columns have c >= b_r: n is found by bisection.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels import _tuning

_INF = tl.constexpr(float("inf"))
_SIGN = tl.constexpr(2**31)
_ALL_BITS = tl.constexpr(2**32 - 1)


@triton.jit(do_not_specialize=["mask_id", "L", "W", "stride_kb", "stride_sb", "stride_nb"])
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

    if RULE == "k":
        n = tl.minimum(tl.maximum(tl.load(k_ptr + row * stride_kb), 0), available).to(tl.int32)
    elif RULE == "threshold":
        n = tl.minimum(tl.maximum(_count(eligible & (c >= bar)), 1), available)
    else:
        n = tl.minimum(1, available)
        high = available
        while n < high:
            r = (n + high + 1) // 2
            enough = 1.0 - tl.div_rn(bar, (r + 1).to(tl.float32))
            reached = _count(eligible & (c >= enough)) >= r
            n = tl.where(reached, r, n)
            high = tl.where(reached, high, r - 1)

    # cut: the n-th largest order, from its highest bit down
    order = _order(c)
    cut = tl.full([], 0, tl.uint32)
    for i in range(32):
        candidate = cut | (tl.full([], _SIGN, tl.uint32) >> i)
        cut = tl.where(_count(eligible & (order >= candidate)) >= n, candidate, cut)
    tied = eligible & (order == cut)
    room = n - _count(eligible & (order > cut))
    commit = (eligible & (order > cut)) | (tied & (tl.cumsum(tied.to(tl.int32), axis=0) <= room))

    tl.store(canvas_ptr, proposal, mask=commit)
    tl.store(committed_ptr + row, n.to(tl.int64))


@triton.jit
def _count(mask):
    return tl.sum(mask.to(tl.int32), axis=0)


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
    k: Tensor | None,
    threshold: float | None,
    factor: float | None,
    start: Tensor,
    length: Tensor,
) -> Tensor:
    """Commit in place and return the number committed per row; arguments as in the public function, already checked."""
    (batch, columns), window = canvas.shape, proposals.shape[1]
    if batch == 0 or columns == 0 or window == 0:
        return torch.zeros(batch, dtype=torch.int64, device=canvas.device)
    committed = torch.empty(batch, dtype=torch.int64, device=canvas.device)
    rule = "k" if k is not None else "threshold" if threshold is not None else "factor"
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
            bar={"k": 0.0, "threshold": threshold, "factor": factor}[rule],
            L=columns,
            W=window,
            stride_cb=canvas.stride(0),
            stride_pb=proposals.stride(0),
            stride_pw=proposals.stride(1),
            stride_fb=confidence.stride(0),
            stride_fw=confidence.stride(1),
            stride_kb=0 if k is None else k.stride(0),
            stride_sb=start.stride(0),
            stride_nb=length.stride(0),
            BLOCK_W=BLOCK_W,
            RULE=rule,
            num_warps=num_warps,
            num_stages=1,
            enable_fp_fusion=False,  # the bar of `factor` is rounded as the specification rounds it
        )
    return committed
