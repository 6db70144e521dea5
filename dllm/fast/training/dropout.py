"""Dropout of a training step by our kernel, where torch's draws its masks on one thread: on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dllm.fast.training.checkpointing import checkpoint_around
from dllm_kernels import _impl, dropout
from dllm_kernels._checks import LOGIT_DTYPES


@contextmanager
def fast_dropout(device: torch.device) -> Iterator[None]:
    """Within this context `F.dropout`, and nn.Dropout with it, is :func:`dllm_kernels.dropout` on a CPU.

    Its masks are others than torch's, of the same law. Each call draws its seed from torch's default generator, so
    `torch.manual_seed`, a resumed run and a gradient checkpoint repeat them. torch.compile keeps them as they are: a
    compiled body has the masks of an eager one.

    So is the dropout of `F.scaled_dot_product_attention`, which torch has no fused kernel for on a CPU: the attention
    weights are computed as torch computes them, and dropped by our kernel.

    Without the C++ extension, on other devices, in evaluation and inside an eager gradient checkpoint, which runs its
    layers again after this context, nothing changes.

    Args:
        device: of the model.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> with fast_dropout(torch.device("cpu")):
        ...     nn.Dropout(0.5)(torch.ones(8)).unique()
        tensor([0., 2.])
    """
    if device.type != "cpu" or not torch.is_grad_enabled() or _impl.why_not_cpu() is not None:
        yield
        return
    with _ByOurKernel():
        yield


class _ByOurKernel(TorchFunctionMode):
    """Sees every call of a torch function on this thread, and takes those of dropout."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        ours = _OURS.get(function, function)
        return ours(*args, **(kwargs or {}))


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.dropout`, with its names."""
    if not (training and 0 < p < 1) or inplace or not _is_ours(input):
        return _TORCH_DROPOUT(input, p, training, inplace)
    return dropout(input, min(p, 1 - 2**-16), _draw_seed(input))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, with its names."""
    if not dropout_p or is_causal or enable_gqa or not _is_ours(query):
        given = dict(attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)
        return _TORCH_ATTENTION(query, key, value, **given)
    scores = (query @ key.mT).float() * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = torch.where(attn_mask, scores, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = torch.ops.aten._safe_softmax(scores, -1)  # 0, as torch has it, where nothing is visible
    return _dropout(weights, dropout_p).to(value.dtype) @ value


# torch's own, whatever stands in their places when they are called
_TORCH_DROPOUT, _TORCH_ATTENTION = F.dropout, F.scaled_dot_product_attention
# what the mode takes, by torch's function
_OURS: dict[Callable[..., Any], Callable[..., Any]] = {_TORCH_DROPOUT: _dropout, _TORCH_ATTENTION: _attention}


def _is_ours(input: Tensor) -> bool:
    ordinary = type(input) in (Tensor, nn.Parameter) and input.dtype in LOGIT_DTYPES and input.device.type == "cpu"
    return ordinary and not _is_run_again()


def _is_run_again() -> bool:
    """Whether a gradient checkpoint runs this forward again in the backward, outside of torch.compile."""
    if torch.compiler.is_compiling():
        return False
    return not torch.is_grad_enabled() or checkpoint_around() is not None


# one operator, which torch.compile neither merges with another draw nor repeats in a backward
@torch.library.custom_op("dllm::draw_seed", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _draw_seed(like: Tensor) -> Tensor:
    """A seed from torch's default generator, int64 [], on the device of a tensor."""
    return torch.randint(2**62, (), dtype=torch.int64, device=like.device)


@_draw_seed.register_fake
def _(like: Tensor) -> Tensor:
    return torch.empty((), dtype=torch.int64, device=like.device)
