"""Experts on a CPU by our kernel, as one of transformers' implementations of experts. No model is changed or forked.

transformers 5 lets a configuration name how experts are computed. Its default, "grouped_mm", takes 1.6 to 2.5 times as
long on a CPU as :func:`dllm_kernels.swiglu_experts` for up to 192 tokens (benchmarks/LOG.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dllm.fast.experts import has_swiglu_experts
from dllm_kernels import _impl, swiglu_experts

try:
    from transformers.integrations import moe
except ImportError:  # transformers 4, whose experts are modules of their own
    moe = None

REPLACED = "grouped_mm"  # transformers' default, which also does what the kernel does not


class _Name(str):
    """The name of our implementation. It is pickled as REPLACED: a model that was saved whole loads without dllm."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (REPLACED,)

    def __copy__(self) -> _Name:
        return self

    def __deepcopy__(self, _: object) -> _Name:
        return self


NAME = _Name("dllm")  # of the implementation
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def use_kernel(model: nn.Module) -> nn.Module:
    """Let a model's experts run by :func:`dllm_kernels.swiglu_experts` where that serves them, in place.

    It serves gated experts with SiLU and without biases, on a CPU, in one dtype, while no gradients are recorded. All
    else, and training, stays with transformers' "grouped_mm". A model that was loaded with another
    `experts_implementation` keeps it; `model.set_experts_implementation("grouped_mm")` undoes this. Nothing of it is
    saved or pickled. transformers 4 has no such choice: there nothing changes.

    Args:
        model: of any class.

    Returns:
        The same model.

    Example:
        >>> use_kernel(nn.Linear(2, 2))
        Linear(in_features=2, out_features=2, bias=True)
    """
    chosen = getattr(getattr(model, "config", None), "_experts_implementation", None)
    if moe is not None and chosen == REPLACED and any(has_swiglu_experts(module) for module in model.modules()):
        register()
        model.set_experts_implementation(NAME)
    return model


def register() -> None:
    """Make our kernel one of transformers' implementations of experts, under the name NAME; needs transformers 5."""
    moe.ALL_EXPERTS_FUNCTIONS.register(NAME, _forward)


def _forward(experts: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """The experts of a layer, for tokens [T, H], chosen experts and their weights [T, k]."""
    if _is_served(experts, hidden):
        return swiglu_experts(hidden, experts.gate_up_proj, experts.down_proj, index, weights)
    return moe.grouped_mm_experts_forward(experts, hidden, index, weights)


def _is_served(experts: nn.Module, hidden: Tensor) -> bool:
    if torch.is_grad_enabled() or hidden.device.type != "cpu" or not has_swiglu_experts(experts):
        return False
    up, down = experts.gate_up_proj, experts.down_proj  # of another type where they are sharded
    plain = type(up) in (Tensor, nn.Parameter) and type(down) in (Tensor, nn.Parameter)
    same = hidden.dtype == up.dtype == down.dtype and hidden.dtype in DTYPES
    return plain and same and _is_built()


def _is_built() -> bool:
    return _impl.why_not_cpu() is None


_is_built._dynamo_marked_constant = True  # torch.compile keeps the answer, as it does with that of _impl.choose
