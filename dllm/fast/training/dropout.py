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
    """Within this context `torch.nn.functional.dropout`, and nn.Dropout with it, is :func:`dllm_kernels.dropout` on a CPU.

    Its masks are others than torch's, of the same law. Each call draws its seed from torch's default generator, so
    `torch.manual_seed`, a resumed run and a gradient checkpoint repeat them. torch.compile keeps them as they are: a
    compiled body has the masks of an eager one. Dropout inside a fused attention stays torch's.

    Without the C++ extension, on other devices, in evaluation and inside an eager gradient checkpoint, which runs its
    layers again after this context, nothing changes.

    Args:
        device: of the model.

    Example:
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
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
        kwargs = kwargs or {}
        return _dropout(*args, **kwargs) if function is F.dropout else function(*args, **kwargs)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.dropout`, with its names."""
    ordinary = type(input) in (Tensor, nn.Parameter) and input.dtype in LOGIT_DTYPES and input.device.type == "cpu"
    if not (training and 0 < p < 1 and ordinary) or inplace or _is_run_again():
        return F.dropout(input, p, training, inplace)
    return dropout(input, min(p, 1 - 2**-16), _draw_seed(input))


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
