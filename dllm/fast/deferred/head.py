"""A linear head whose output is deferred."""

from __future__ import annotations

import copyreg
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from dllm.fast.deferred import loss, tokens, views  # noqa: F401  what a deferred tensor serves
from dllm.fast.deferred.tensor import defer, log_once
from dllm_kernels._checks import LOGIT_DTYPES


class _Disabled(threading.local):
    depth = 0


_disabled = _Disabled()
# The model of each deferred head.
_models: weakref.WeakKeyDictionary[nn.Module, weakref.ref[nn.Module]] = weakref.WeakKeyDictionary()


class DeferredHead(nn.Linear):
    """A linear head that returns deferred logits. :func:`dllm.fast.patch` sets an nn.Linear's class to this one:
    parameters, hooks and names stay. Copies, pickles and checkpoints of it are of the nn.Linear.
    """

    @torch._disable_dynamo  # torch.compiler.disable, but for loading the compiler when it decorates
    def forward(self, hidden: Tensor) -> Tensor:
        if _disabled.depth:
            return super().forward(hidden)
        why = self._why_not(hidden)
        if why:
            log_once(f"not here, because {why}")
            return super().forward(hidden)
        return defer(hidden, self.weight, self.bias)

    def __reduce_ex__(self, protocol: int) -> tuple:
        _, _, *state = super().__reduce_ex__(protocol)
        return copyreg._reconstructor, (nn.Linear, object, None), *state

    def _why_not(self, hidden: Tensor) -> str | None:
        """Why logits of this call cannot be deferred; None if they can."""
        if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
            return "a transform of torch.func or forward differentiation is at work"
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        for needed in (dtype, hidden.dtype, self.weight.dtype):  # autocast leaves float64 as it is
            if needed not in LOGIT_DTYPES:
                return f"no kernel computes in {needed}"
        if not torch.is_autocast_enabled(device) and hidden.dtype != self.weight.dtype:
            return f"hidden states are {hidden.dtype} and the head is {self.weight.dtype}"
        return _why_weight_is_temporary(self)


def defer_head(head: nn.Linear, model: nn.Module) -> None:
    """Make the head of a model a deferred one."""
    head.__class__ = DeferredHead
    _models[head] = weakref.ref(model)


def _why_weight_is_temporary(head: nn.Linear) -> str | None:
    """Why the head's weight may be gone after its forward; None where it stays until the logits are used."""
    if hasattr(head.weight, "ds_id"):
        return "DeepSpeed ZeRO-3 gathers the head's weight for its forward only"
    if not isinstance(head.weight, nn.Parameter):
        return "the head's weight is no parameter: FSDP, or whoever made it, may take it back"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule

        model = _models[head]()
        for module in () if model is None else model.modules():
            # what is sharded as the root keeps its weights until the backward, its parts only for their forward
            if module is not model and isinstance(module, FSDPModule) and head in set(module.modules()):
                return "FSDP gathers the head's weight for the forward of a part of the model only"
    return None


@contextmanager
def no_deferral() -> Iterator[None]:
    """Make deferred heads compute plain logits in this context, for the calling thread."""
    _disabled.depth += 1
    try:
        yield
    finally:
        _disabled.depth -= 1
