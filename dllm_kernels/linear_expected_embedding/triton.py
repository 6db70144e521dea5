"""Sampling from a head, and the mean of its rows, on a GPU: library products around two kernels, by slices of tokens.

For each slice of the vocabulary a library multiplies hidden states with the head, the kernel of
:mod:`dllm_kernels.gumbel_argmax.triton` reduces the logits, a second kernel turns them in place into weights
e^((l - m) / T), m the largest logit of the row so far, and a library multiplies the weights with the same slice into
float32 sums, which are scaled where m grows. The sums are divided at the end by those of the weights as they were
rounded. So logits exist for a slice only, and the result's own rounding is the largest error.

One kernel for all would need the sums of its rows in registers: 64 rows of 2816 columns are 721 KB, where a
multiprocessor has 256. The head is read twice, which arithmetic hides from some 180 rows on.

Slices are those of :mod:`dllm_kernels.linear_gumbel_argmax.triton`. Up to 192 rows their logits are 32 MB, which stay
in L2 between the four steps: at a vocabulary of 262144 in bfloat16 one slice for 64 rows, four for 192. With more rows
they are 128 MB, one slice for 256 rows: products of full size, and logits that pass through memory five times (0.16 ms
of 1.3).

Predicted, not measured, for an H200, width 2816, vocabulary 262144, bfloat16, softcap, draw (790 TFLOP/s and 4.3 TB/s
in practice; counted: 71 instructions a logit in the first kernel, 53 of them the softcap's, and 38 in the second), in
ms: 16 rows 0.8 (0.69 of it reading the head), 64 rows 0.8, 256 rows 1.3 (0.96 of it products), 1024 rows 5.0. Plain
PyTorch's passes over [256, 262144] alone take 3.9.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels.gumbel_argmax import triton as gumbel_argmax
from dllm_kernels.linear_gumbel_argmax import sliced
from dllm_kernels.linear_gumbel_argmax import triton as head
from dllm_kernels.logits import STATISTICS_TEMPERATURES
from dllm_kernels.logits_triton import HIGHEST, INF, LOG2_E, adjacent, load_logits, statistics_temperature
from dllm_kernels.logits_triton import stride as stride_of

BLOCK_V = 2048  # tokens of a program that forms weights: their sum is one addend of a row's


@triton.jit(do_not_specialize=["stride_tr", "blocks"])
def _weight_kernel(
    x_ptr,
    suppress_ptr,
    top_ptr,
    temperature_ptr,
    sum_ptr,
    softcap,
    size_v,
    stride_xr,
    stride_tr,
    blocks,
    BLOCK_V: tl.constexpr,
    HAS_SUPPRESS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    TEMPERED: tl.constexpr,
):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x_ptr += row * stride_xr
    top, rate = tl.load(top_ptr + row), LOG2_E
    top = tl.where(top > -INF, top, 0.0)
    if TEMPERED:
        rate = tl.div_rn(LOG2_E, statistics_temperature(tl.load(temperature_ptr + row * stride_tr)))

    EXACT: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    offs_v = block * BLOCK_V + tl.arange(0, BLOCK_V)
    l = load_logits(x_ptr, suppress_ptr, offs_v, size_v, 0.0, HAS_SUPPRESS, False, softcap, HAS_SOFTCAP and EXACT)
    if HAS_SOFTCAP and not EXACT:
        l = _nearly_softcapped(l, softcap)
    # float16 has no number below 2^-24, and none above 2^16
    LIFT: tl.constexpr = 15.0 if x_ptr.dtype.element_ty == tl.float16 else 0.0
    w = tl.exp2((l - top) * rate + LIFT).to(x_ptr.dtype.element_ty)
    tl.store(x_ptr + offs_v, w, mask=offs_v < size_v)
    tl.store(sum_ptr + row * blocks + block, tl.sum(w.to(tl.float32), axis=0))


@triton.jit
def _nearly_softcapped(l, softcap):
    """c tanh(l / c), off by up to c 2^-21: for weights in half precision, at a fifth of the exact one's cost."""
    e = tl.exp2(tl.minimum(tl.abs(l), HIGHEST) * (-2.0 * LOG2_E * tl.div_rn(1.0, softcap)))
    root = tl.rsqrt(1.0 + e)
    size = softcap * (1.0 - e) * (root * root)
    return tl.where(l > -INF, tl.where(l < 0, -size, size), -INF)


def weigh(
    logits: Tensor,
    top: Tensor,
    temperature: Tensor | None,
    suppress: Tensor | None,
    tempered: bool,
    softcap: float | None,
) -> Tensor:
    """Logits [n, width] become weights, relative to the logit `top` [n] of each row; returns their sums [n]."""
    n, width = logits.shape
    blocks = triton.cdiv(width, BLOCK_V)
    sums = torch.empty(n, blocks, dtype=torch.float32, device=logits.device)
    _weight_kernel[(n, blocks)](
        x_ptr=logits,
        suppress_ptr=suppress,
        top_ptr=top,
        temperature_ptr=temperature,
        sum_ptr=sums,
        softcap=1.0 if softcap is None else softcap,
        size_v=width,
        stride_xr=logits.stride(0),
        stride_tr=stride_of(temperature),
        blocks=blocks,
        BLOCK_V=BLOCK_V,
        HAS_SUPPRESS=suppress is not None,
        HAS_SOFTCAP=softcap is not None,
        TEMPERED=tempered,
        num_warps=4,
        enable_fp_fusion=False,  # the softcap's bits are those of the statistics
    )
    return sums.sum(dim=1)


class _Sums:
    """sum w_v E_v and sum w_v of each row, w relative to the largest logit so far: float32 [n, H] and [n]."""

    def __init__(
        self,
        weight: Tensor,
        n: int,
        temperature: Tensor | None,
        suppress: Tensor | None,
        tempered: bool,
        softcap: float | None,
    ):
        self.weight, self.temperature, self.suppress = weight, temperature, adjacent(suppress)
        self.tempered, self.softcap = tempered, softcap
        self.top = weight.new_full((n,), -torch.inf, dtype=torch.float32)
        self.total = torch.zeros_like(self.top)
        self.sums: Tensor | None = None

    def add(self, first: int, logits: Tensor, peaks: Tensor) -> None:
        """A slice of logits [n, width] from token `first` on, and the largest of each of its chunks; they are
        overwritten."""
        before, self.top = self.top, torch.maximum(self.top, peaks.amax(dim=1))
        gap = before - self.top
        if self.tempered:
            gap = gap / torch.where(self.temperature > 0, self.temperature.clamp(*STATISTICS_TEMPERATURES), 1.0)
        shrink = torch.where(before > -torch.inf, gap.exp(), 0.0)
        suppress = None if self.suppress is None else self.suppress[first : first + logits.shape[1]]
        weights = weigh(logits, self.top, self.temperature, suppress, self.tempered, self.softcap)
        self.total = self.total * shrink + weights
        if self.sums is not None:
            self.sums.mul_(shrink[:, None])
        self.sums = _add_product(self.sums, logits, self.weight[first : first + logits.shape[1]])

    def mean(self, token: Tensor) -> Tensor:
        """The mean of each row, in the weight's dtype; 0 where there is no token."""
        mean = self.sums / self.total[:, None]
        return mean.masked_fill_((token < 0)[:, None], 0.0).to(self.weight.dtype)


def linear_expected_embedding(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    rows: Tensor | None = None,
    count: Tensor | None = None,
    **options: Tensor | bool | float | None,
) -> tuple[Tensor, ...]:
    """token, log_prob, margin, neg_entropy, lse, argmax, embedding; arguments as in the public function, checked."""
    hidden = sliced.choose(hidden, None, 0.0, rows)
    with torch.cuda.device_of(hidden):
        block_r, width = head.slice_shape(len(hidden), len(weight), hidden.element_size())

        def reduce(rows: slice, count: Tensor | None, options: dict) -> tuple[Tensor, ...]:
            return _by_slices(hidden[rows], weight, bias, width, count=count, **options)

        return sliced.by_blocks(len(hidden), block_r, count, options, reduce)


def _by_slices(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    width: int,
    *,
    temperature: Tensor | None = None,
    suppress: Tensor | None = None,
    tempered: bool = False,
    softcap: float | None = None,
    count: Tensor | None = None,
    **noise: Tensor | None,
) -> tuple[Tensor, ...]:
    """The results of a block of rows."""
    n = len(hidden)
    if n == 0:
        return *gumbel_argmax.over_slices([], 0, len(weight), hidden.device), torch.empty_like(hidden)
    shared = dict(temperature=temperature, suppress=suppress, tempered=tempered, softcap=softcap)
    sums = _Sums(weight, n, **shared)
    slices = sliced.slices(hidden, weight, bias, width)
    found = gumbel_argmax.over_slices(
        slices, n, len(weight), hidden.device, **shared, **noise, count=count, consume=sums.add
    )
    return *found, sums.mean(found[0])


def _add_product(total: Tensor | None, w: Tensor, e: Tensor) -> Tensor:
    """total + w @ e in float32, over `total` where there is one."""
    if w.dtype == torch.float32:
        return w @ e if total is None else total.addmm_(w, e)
    if w.is_cuda and torch.version.cuda:
        if total is None:
            return torch.mm(w, e, out_dtype=torch.float32)
        return torch.addmm(total, w, e, out_dtype=torch.float32, out=total)
    product = w.float() @ e.float()
    return product if total is None else total.add_(product)
