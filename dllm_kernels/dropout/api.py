"""dropout: elements set to 0 at random, by a mask that follows from a seed and is not stored."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from dllm_kernels import _checks, _impl

# Probabilities are multiples of 1 / STEPS.
STEPS = 2**16


def dropout(x: Tensor, p: float, seed: Tensor, *, impl: str = "auto") -> Tensor:
    r"""Set each element to 0 with probability p and divide the others by 1 - p.

    .. math::
        y_i = x_i \, [h_i \ge 65536\, p] \, / \, (1 - p)

    with h_i 16 random bits and p rounded to a multiple of 1/65536, also in the divisor, so that the mean is exact. The
    bits come from the dropout stream of :mod:`dllm_kernels.philox`. With i = 256 t + 64 k + 32 u + r the index in
    row-major order, they are the lower (u = 0) or upper half of word k of block 32 t + r.

    The backward computes the mask again from the seed. torch's own dropout on a CPU draws its mask on one thread and
    keeps it, as large as x. On a GPU torch's is one fast kernel, so there is no implementation for a GPU here.

    Args:
        x: float32, bfloat16 or float16, any shape, on the CPU. Differentiable, any number of times.
        p: from 0 to below 1.
        seed: int64 [], its 64 bits; another one for each call.
        impl: "auto", "reference" or "cpu"; an explicit one never falls back.

    Returns:
        y, of the shape and dtype of x, contiguous.

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has run.
        RuntimeError: the implementation asked for is not available.

    Source: Srivastava et al., JMLR 15 (2014).

    Example:
        >>> y = dropout(torch.ones(1000), 0.5, torch.tensor(7))
        >>> y.unique(), 400 < int(y.count_nonzero()) < 600
        (tensor([0., 2.]), True)
    """
    _checks.tensor("x", x, dtypes=_checks.LOGIT_DTYPES, shape=("any",) * getattr(x, "ndim", 0))
    if x.device.type != "cpu":
        raise ValueError(f"x must be on the CPU, got a tensor on {x.device}: torch.nn.functional.dropout serves GPUs")
    _checks.tensor("seed", seed, dtypes=(torch.int64,), shape=(), device=x.device)
    if not 0 <= p < 1 - 0.5 / STEPS:
        raise ValueError(f"p must be at least 0 and below 1, got {p}")
    if impl == "triton":
        raise ValueError("impl='triton' does not exist for dropout: torch.nn.functional.dropout serves GPUs")
    return _dropout(x, round(p * STEPS), seed, _impl.choose(impl, x.device))


@torch.library.custom_op("dllm::dropout", mutates_args=())
def _dropout(x: Tensor, threshold: int, seed: Tensor, impl: str) -> Tensor:
    """One operator for torch.compile and autograd, with the arguments checked."""
    return importlib.import_module(f"dllm_kernels.dropout.{impl}").dropout(x, threshold, seed)


@_dropout.register_fake
def _(x: Tensor, threshold: int, seed: Tensor, impl: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep(ctx: object, inputs: tuple, output: Tensor) -> None:
    _, ctx.threshold, seed, ctx.impl = inputs
    ctx.save_for_backward(seed)


def _backward(ctx: object, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (seed,) = ctx.saved_tensors
    return _dropout(grad, ctx.threshold, seed, ctx.impl), None, None, None


_dropout.register_autograd(_backward, setup_context=_keep)
