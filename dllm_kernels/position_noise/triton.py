"""Noise of positions in Triton: one thread a position."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels.philox_triton import RANDOM_CONFIDENCE, gumbel_from_words, words

# a list of positions is short: small programs spread it over the chip
_BLOCK_N = 128


@triton.jit(do_not_specialize=["N", "stride_sn", "stride_pn", "stride_in"])
def _noise_kernel(
    seeds_ptr,
    positions_ptr,
    step_ptr,
    noise_ptr,
    N,
    stride_sn,
    stride_pn,
    stride_in,
    BLOCK_N: tl.constexpr,
    GUMBEL: tl.constexpr,
):
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    seed = tl.load(seeds_ptr + offs_n * stride_sn, mask=mask_n, other=0)
    position = tl.load(positions_ptr + offs_n * stride_pn, mask=mask_n, other=0)
    step = tl.load(step_ptr + offs_n * stride_in, mask=mask_n, other=0)
    first, second, _, _ = words(seed, tl.zeros([BLOCK_N], tl.int64), position, step, RANDOM_CONFIDENCE)
    if GUMBEL:
        noise = gumbel_from_words(first, second)
    else:
        noise = ((first >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23
    tl.store(noise_ptr + offs_n, noise, mask=mask_n)


def position_noise(seeds: Tensor, positions: Tensor, step: Tensor, law: str) -> Tensor:
    """float32 [N]; arguments as in the public function, already checked."""
    n = len(seeds)
    noise = torch.empty(n, dtype=torch.float32, device=seeds.device)
    if n == 0:
        return noise
    with torch.cuda.device_of(seeds):
        _noise_kernel[(triton.cdiv(n, _BLOCK_N),)](
            seeds_ptr=seeds,
            positions_ptr=positions,
            step_ptr=step,
            noise_ptr=noise,
            N=n,
            stride_sn=seeds.stride(0),
            stride_pn=positions.stride(0),
            stride_in=step.stride(0),
            BLOCK_N=_BLOCK_N,
            GUMBEL=law == "gumbel",
            num_warps=4,
            num_stages=1,
            enable_fp_fusion=False,  # the bits of the noise are multiplications and additions, each rounded
        )
    return noise
