"""Noise of positions, which orders masked positions where confidence does not, or not alone."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from dllm_kernels import _checks, _impl

LAWS = ("uniform", "gumbel")


def position_noise(
    seeds: Tensor, positions: Tensor, step: int | Tensor, *, law: str = "uniform", impl: str = "auto"
) -> Tensor:
    r"""One random number for each position, in one launch, from the stream of random confidences.

    .. math::
        u = (\lfloor w / 512 \rfloor + 1/2)\, 2^{-23}, \qquad g = -\log(-\log(1 - U))

    with w the first word of block 0 at (seed, position, step) and U of 64 bits, from the first two words
    (:mod:`dllm_kernels.philox`). A number is a function of its address: the same in any batch, on any device, in any
    implementation, bit for bit. Nothing is read back to the host.

    Args:
        seeds: int64 [N], the seed of the sample that each position belongs to.
        positions: integers [N], each position in its canvas.
        step: integer or tensor, one for all or [N]: the denoising step.
        law: "uniform" in (0, 1), or "gumbel", standard: the k positions with the largest c / T + g are k draws without
            replacement from softmax(c / T).
        impl: "auto", "reference", "triton" or "cpu"; an explicit one never falls back.

    Returns:
        float32 [N].

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has run.
        RuntimeError: the implementation asked for is not available.

    Source: Philox (Salmon et al., SC 2011); Gumbel top-k (arXiv:1903.06059).

    Example:
        >>> u = position_noise(torch.tensor([7, 7]), torch.tensor([0, 1]), 0)
        >>> u.shape, bool(((u > 0) & (u < 1)).all())
        (torch.Size([2]), True)
    """
    _checks.tensor("seeds", seeds, dtypes=(torch.int64,), shape=("N",))
    device, n = seeds.device, len(seeds)
    if law not in LAWS:
        raise ValueError(f"law must be one of {', '.join(LAWS)}, got {law!r}")
    positions = _checks.per_row("positions", positions, n, torch.int64, device)
    step = _checks.per_row("step", step, n, torch.int64, device)
    module = importlib.import_module(f"dllm_kernels.position_noise.{_impl.choose(impl, device)}")
    return module.position_noise(seeds, positions, step, law)
