"""Weighted cross-entropy in Triton: one program for each row, which reads it from memory once.

The first pass over a row finds its largest logit and the sum of exponentials; the second writes the gradient, over the
logits themselves where that is asked for. A program fills a multiprocessor (32 warps; short rows, half of one), so the
rows under way fit into the L2 cache together (132 rows of 126464 bfloat16 logits are 33 MB) and the second pass reads
from there. Rows with weight 0 are not read.

Of its tokens, VECTOR at a time, a thread keeps
    m  max l, at least the lowest float32, which keeps l - m free of inf - inf
    s  sum 2^((l - m) log2 e), without the target
and threads meet once, between the passes. The target is kept apart because, where it is nearly certain, its exponential
would swallow the others, and they alone decide the loss, log(1 + others), and the slope p - 1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels import _tuning
from dllm_kernels.philox_triton import log_float32

_INF = tl.constexpr(float("inf"))
_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
_LOG2_E = tl.constexpr(1.4426950408889634)
_NOTHING = tl.constexpr(-200.0)  # e^-200 is 0 in float32


@triton.jit
def _row_kernel(
    x_ptr,
    g_ptr,
    targets_ptr,
    weight_ptr,
    scale_ptr,
    nll_ptr,
    label_smoothing,
    uniform,
    z_loss,
    softcap,
    V,
    stride_xr,
    stride_gr,
    stride_tr,
    stride_wr,
    stride_sr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
    HAS_GRADIENT: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    HAS_Z_LOSS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * stride_xr
    g_ptr += row * stride_gr
    BLOCK_V: tl.constexpr = THREADS * VECTOR
    LEAVES: tl.constexpr = "evict_last" if HAS_GRADIENT else "evict_first"  # whether there is a second reading
    offs_b = tl.arange(0, THREADS)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    target = tl.load(targets_ptr + row * stride_tr)
    weight = tl.load(weight_ptr + row * stride_wr)
    if weight == 0:
        tl.store(nll_ptr + row, 0.0)
        if HAS_GRADIENT:
            for start in range(0, V, BLOCK_V):
                offs_v = start + offs_b
                tl.store(g_ptr + offs_v, tl.zeros_like(offs_v).to(g_ptr.dtype.element_ty), mask=offs_v < V)
        return

    valid = (weight > 0) & (weight < _INF) & (target >= 0) & (target < V)
    target = tl.where(valid, target, 0).to(tl.int32)
    logit, slope_at_target = _capped(tl.load(x_ptr + target).to(tl.float32), softcap, HAS_SOFTCAP)

    m = tl.full([THREADS], _LOWEST, tl.float32)
    s = tl.zeros([THREADS], tl.float32)
    sum_l = tl.zeros([THREADS], tl.float32)
    for start in range(0, V, BLOCK_V):
        offs_v = start + offs_b
        mask_v = offs_v < V
        x = tl.load(x_ptr + offs_v, mask=mask_v, other=0.0, eviction_policy=LEAVES).to(tl.float32)
        l, _ = _capped(x, softcap, HAS_SOFTCAP)
        if HAS_SMOOTHING:
            sum_l += tl.sum(tl.where(mask_v, l, 0.0), axis=1)
        l = tl.where(mask_v, l, -_INF)
        new_m = tl.maximum(m, tl.max(l, axis=1))
        e = tl.where(offs_v == target, 0.0, tl.exp2((l - new_m[:, None]) * _LOG2_E))
        s = s * tl.exp2(tl.maximum(m - new_m, _NOTHING) * _LOG2_E) + tl.sum(e, axis=1)
        m = new_m
    max_l = tl.max(m, axis=0)
    others = tl.sum(s * tl.exp2(tl.maximum(m - max_l, _NOTHING) * _LOG2_E), axis=0)
    of_target = tl.exp2((logit - max_l) * _LOG2_E)
    total = others + of_target
    # a NaN has made the total NaN, +inf has by inf - inf, and without a finite logit it is 0
    total = tl.where((total > 0) & (max_l < _INF) & valid, total, float("nan"))

    log_total = _log1p(tl.where(of_target == 1.0, others, (others - 1.0) + of_target))
    log_total = tl.where(total == total, log_total, float("nan"))
    lse = max_l + log_total
    nll = (max_l - logit) + log_total
    if HAS_SMOOTHING:
        nll = (1.0 - label_smoothing) * nll + (label_smoothing * lse - uniform * tl.sum(sum_l, axis=0))
    share = 1.0
    if HAS_Z_LOSS:
        nll += z_loss * lse * lse
        share += 2.0 * z_loss * lse
    tl.store(nll_ptr + row, nll)

    if HAS_GRADIENT:
        scale = tl.load(scale_ptr + row * stride_sr)
        p_minus_1 = -tl.div_rn(others, total)
        at_target = scale * slope_at_target * (share * p_minus_1 + ((share - 1.0) + (label_smoothing - uniform)))
        factor = tl.div_rn(scale * share, total)
        tl.debug_barrier()  # all have read the target's logit before anyone writes over it
        for start in range(0, V, BLOCK_V):
            offs_v = start + offs_b
            mask_v = offs_v < V
            x = tl.load(x_ptr + offs_v, mask=mask_v, other=0.0, eviction_policy="evict_first").to(tl.float32)
            l, slope = _capped(x, softcap, HAS_SOFTCAP)
            g = factor * tl.exp2((l - max_l) * _LOG2_E)
            if HAS_SMOOTHING:
                g -= scale * uniform
            g = tl.where(offs_v == target, at_target, g * slope)
            tl.store(g_ptr + offs_v, g.to(g_ptr.dtype.element_ty), mask=mask_v)


@triton.jit
def _scale_kernel(x_ptr, scale_ptr, C, stride_xr, stride_sr, BLOCK_C: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(scale_ptr + row * stride_sr)
    if scale == 1:
        return
    x_ptr += row * stride_xr
    for start in range(0, C, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        x = tl.load(x_ptr + offs_c, mask=offs_c < C).to(tl.float32)
        tl.store(x_ptr + offs_c, (x * scale).to(x_ptr.dtype.element_ty), mask=offs_c < C)


@triton.jit
def _capped(x, softcap, HAS_SOFTCAP: tl.constexpr):
    """softcap tanh(x / softcap) and its slope: csrc/common.h has the same formulae, and says how exact they are."""
    slope = 1.0
    if HAS_SOFTCAP:
        x = tl.div_rn(x, softcap)
        square = x * x
        p = -5.704982901e-3 * square + 2.063908320e-2
        p = p * square - 5.373971369e-2
        p = p * square + 1.333144218e-1
        p = p * square - 3.333328194e-1
        size = tl.abs(x)
        e = tl.exp2(size * (-2.0 * _LOG2_E))
        inverse = 1.0 / (1.0 + e)
        small = x + x * square * p
        large = (1.0 - e) * inverse
        slope = tl.where(size < 0.625, 1.0 - small * small, 4.0 * e * inverse * inverse)
        x = softcap * tl.where(size < 0.625, small, tl.where(x < 0, -large, large))
    return x, slope


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0: what is lost in rounding 1 + x to u is given back by the slope log u / (u - 1)."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.div_rn(log_float32(u) * x, tl.where(u == 1.0, 1.0, u - 1.0)))


def masked_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    row_scale: Tensor,
    gradient: Tensor | None,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
) -> Tensor:
    """nll [R]; writes row_scale times its gradient into `gradient`, unless that is None. It may be `logits` itself.

    Arguments as in the public function, already checked; row_scale float32 [R], 0 allowed. One launch.
    """
    nll = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
    if len(targets) == 0:
        return nll
    with torch.cuda.device_of(logits):
        plain = softcap is None and logits.stride(0) % 16 == 0
        shape = _tuning.masked_cross_entropy(logits.dtype, logits.shape[1], plain)
        _row_kernel[(len(targets),)](
            x_ptr=logits,
            g_ptr=logits if gradient is None else gradient,
            targets_ptr=targets,
            weight_ptr=row_weight,
            scale_ptr=row_scale,
            nll_ptr=nll,
            label_smoothing=label_smoothing,
            uniform=label_smoothing / logits.shape[1],
            z_loss=z_loss,
            softcap=softcap or 0.0,
            V=logits.shape[1],
            stride_xr=logits.stride(0),
            stride_gr=0 if gradient is None else gradient.stride(0),
            stride_tr=targets.stride(0),
            stride_wr=row_weight.stride(0),
            stride_sr=row_scale.stride(0),
            THREADS=shape.THREADS,
            VECTOR=shape.VECTOR,
            HAS_GRADIENT=gradient is not None,
            HAS_SMOOTHING=label_smoothing > 0,
            HAS_Z_LOSS=z_loss > 0,
            HAS_SOFTCAP=softcap is not None,
            num_warps=shape.num_warps,
            num_stages=1,
            enable_fp_fusion=True,
        )
    return nll


def scale_rows(x: Tensor, scale: Tensor) -> None:
    """x [R, C] times scale [R], in place; rows whose scale is 1 are not touched. One launch."""
    if x.numel() == 0:
        return
    with torch.cuda.device_of(x):
        _scale_kernel[(len(x),)](
            x_ptr=x,
            scale_ptr=scale,
            C=x.shape[1],
            stride_xr=x.stride(0),
            stride_sr=scale.stride(0),
            BLOCK_C=min(4096, triton.next_power_of_2(x.shape[1])),
            num_warps=8,
            num_stages=1,
            enable_fp_fusion=True,
        )
