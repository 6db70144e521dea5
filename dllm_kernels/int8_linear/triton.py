"""A linear layer in 8 bits in Triton: one kernel quantises rows, a second multiplies them.

Both operands are read as integers, a weight of half the bytes that bfloat16 has. Sums are exact integers, so the block
shapes, which follow from the number of rows, change no bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels import _tuning
from dllm_kernels.int8 import SMALLEST


@triton.jit
def _quantize_kernel(hidden_ptr, q_ptr, scale_ptr, H, stride_hr, SMALLEST: tl.constexpr, BLOCK_H: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offs_h = tl.arange(0, BLOCK_H)
    mask_h = offs_h < H
    x = tl.load(hidden_ptr + row * stride_hr + offs_h, mask=mask_h, other=0.0).to(tl.float32)
    bits = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0)  # of sizes, which are ordered as they are
    finite = bits < 0x7F800000
    size = tl.where(finite, bits, 0).to(tl.float32, bitcast=True)
    scale = tl.div_rn(tl.maximum(size, SMALLEST), 127.0)
    shift = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer, halves to even
    q = (tl.where(finite, x, 0.0) * tl.div_rn(1.0, scale) + shift) - shift
    tl.store(q_ptr + row * H + offs_h, q.to(tl.int8), mask=mask_h)
    tl.store(scale_ptr + row, tl.where(finite, scale, float("nan")))


@triton.jit(do_not_specialize=["N", "V"])
def _product_kernel(
    q_ptr,
    row_scale_ptr,
    weight_ptr,
    scale_ptr,
    bias_ptr,
    out_ptr,
    N,
    V,
    H,
    stride_wv,
    stride_or,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_H: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    # neighbours share a tile of the weight
    blocks = tl.cdiv(N, BLOCK_R)
    offs_r = (tl.program_id(0) % blocks * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    offs_v = (tl.program_id(0) // blocks * BLOCK_V + tl.arange(0, BLOCK_V)).to(tl.int64)
    mask_r, mask_v = offs_r < N, offs_v < V
    offs_k = tl.arange(0, BLOCK_K)
    q_ptr += (tl.minimum(offs_r, N - 1) * H)[:, None] + offs_k[None, :]
    weight_ptr += (tl.minimum(offs_v, V - 1) * stride_wv)[None, :] + offs_k[:, None]
    dot = tl.zeros([BLOCK_R, BLOCK_V], tl.int32)
    for k in range(0, H, BLOCK_K):
        if EVEN_H:
            q = tl.load(q_ptr + k)
            w = tl.load(weight_ptr + k)
        else:
            q = tl.load(q_ptr + k, mask=offs_k[None, :] < H - k, other=0)
            w = tl.load(weight_ptr + k, mask=offs_k[:, None] < H - k, other=0)
        dot = tl.dot(q, w, dot, out_dtype=tl.int32)
    row_scale = tl.load(row_scale_ptr + offs_r, mask=mask_r, other=0.0)
    scale = tl.load(scale_ptr + offs_v, mask=mask_v, other=0.0)
    y = dot.to(tl.float32) * row_scale[:, None] * scale[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + offs_v, mask=mask_v, other=0.0)[None, :]
    out_ptr += (offs_r * stride_or)[:, None] + offs_v[None, :]
    tl.store(out_ptr, y.to(out_ptr.dtype.element_ty), mask=mask_r[:, None] & mask_v[None, :])


def int8_linear(hidden: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """[N, V] of the dtype of `hidden`; arguments as in the public function, already checked. Two launches."""
    out = hidden.new_empty(len(hidden), len(weight))
    if out.numel() > 0:
        with torch.cuda.device_of(hidden):
            product(*quantize_rows(hidden), weight, scale, bias, out)
    return out


def quantize_rows(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, H] in 8 bits, adjacent, and their scales [N]: :func:`dllm_kernels.int8.quantize_rows` in one launch."""
    n, width = hidden.shape
    q, scale = hidden.new_empty(n, width, dtype=torch.int8), hidden.new_empty(n, dtype=torch.float32)
    if n > 0:
        BLOCK_H = triton.next_power_of_2(width)
        _quantize_kernel[(n,)](
            hidden_ptr=hidden,
            q_ptr=q,
            scale_ptr=scale,
            H=width,
            stride_hr=hidden.stride(0),
            SMALLEST=SMALLEST,
            BLOCK_H=BLOCK_H,
            num_warps=max(1, min(BLOCK_H // 1024, 16)),
            enable_fp_fusion=False,
        )
    return q, scale


def product(q: Tensor, row_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Write the product of quantised rows into `out` [N, V], rounded to its dtype."""
    (n, width), vocab_size = q.shape, len(weight)
    shape, launch = _tuning.int8_linear(n)
    _product_kernel[(triton.cdiv(n, shape.BLOCK_R) * triton.cdiv(vocab_size, shape.BLOCK_V),)](
        q_ptr=q,
        row_scale_ptr=row_scale,
        weight_ptr=weight,
        scale_ptr=scale,
        bias_ptr=bias,
        out_ptr=out,
        N=n,
        V=vocab_size,
        H=width,
        stride_wv=weight.stride(0),
        stride_or=out.stride(0),
        **shape._asdict(),
        EVEN_H=width % shape.BLOCK_K == 0,
        HAS_BIAS=bias is not None,
        **launch,
        enable_fp_fusion=False,  # a product and a sum are rounded each, as in every implementation
    )
