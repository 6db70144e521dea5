"""Attention of a compiled body on a CPU: which calls of PyTorch's attention our kernel takes over in a traced graph."""

from __future__ import annotations

import functools
import importlib

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels import _impl
from dllm_kernels.attention.api import MULTIPLE

# Head sizes by dtype for which our kernel is the faster one, measured with AVX-512 (benchmarks/LOG.md); None: all.
FASTER: dict[torch.dtype, int | None] = {torch.bfloat16: None, torch.float32: 32}


def replace_attention(graph: torch.fx.GraphModule) -> int:
    """Let :func:`dllm_kernels.attention` compute what it is faster at, in place; returns how many calls those are.

    Calls stay as they are that need gradients, drop out, are causal, have a mask that adds, or run where the kernel has
    not been measured: on other devices, without AVX-512, and in bfloat16 on a CPU with matrix tiles.

    Args:
        graph: of torch's functions, as torch.compile hands it to a backend.
    """
    if torch.is_grad_enabled() or not is_measured_here():
        return 0
    calls = graph.graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention)
    replaced = [node for node in calls if _is_served(*_values(node.args), **_values(node.kwargs))]
    for node in replaced:
        node.target = _by_our_kernel
    if replaced:
        importlib.import_module("dllm_kernels.attention.cpu")
        graph.recompile()
    return len(replaced)


@functools.cache
def is_measured_here() -> bool:
    """Whether our kernel is there, on a CPU of the kind on which it was measured."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and _impl.why_not_cpu() is None


def _values(arguments: object) -> object:
    """Arguments of a call with the tensors that its nodes stood for while it was traced."""
    return torch.fx.node.map_arg(arguments, lambda node: node.meta.get("example_value"))


def _is_served(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> bool:
    if any(not isinstance(x, Tensor) or x.dim() != 4 or x.device.type != "cpu" for x in (query, key, value)):
        return False
    width = query.shape[-1]
    if dropout_p or is_causal or not isinstance(width, int) or width % MULTIPLE or value.shape[-1] != width:
        return False
    if (
        query.dtype not in FASTER
        or FASTER[query.dtype] not in (None, width)
        or not key.dtype == value.dtype == query.dtype
    ):
        return False
    if query.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return False
    if attn_mask is None:
        return True
    return (
        isinstance(attn_mask, Tensor)
        and attn_mask.dtype == torch.bool
        and attn_mask.dim() == 4
        and attn_mask.shape[1] == 1
        and not (isinstance(attn_mask.shape[3], int) and attn_mask.shape[3] == 1)
    )


def _by_our_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As scaled_dot_product_attention for what :func:`_is_served` has let through."""
    from dllm_kernels.attention.cpu import attention

    mask = attn_mask
    if mask is not None:
        mask = mask[:, 0].expand(query.shape[0], query.shape[2], key.shape[2])
    return attention(query, key, value, mask, query.shape[-1] ** -0.5 if scale is None else scale)
