"""The floor of a model's body on a CPU: its own linear layers alone, replayed at the shapes of one forward."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Products:
    """The products x W^T + b of the linear layers that one forward runs, each with inputs of its own shape and dtype.

    Calling it runs all of them by F.linear, one after the other, and nothing else: no attention, no norm, no
    activation. So no program that multiplies in the same way takes less time. One that packs its weights once, takes a
    faster library, or multiplies in fewer bits, can.

    Args:
        module: the body; layers that are ``nn.Linear`` and run in `forward` count, each as often as it runs.
        forward: runs the body once.
        packed: by oneDNN, with weights in the layout of its own choice; needs :func:`can_pack`.

    Attributes:
        flops: 2 R H_in H_out, summed over the products, where R is the number of rows.

    Raises:
        ValueError: no linear layer runs.

    Example:
        >>> layer = nn.Linear(3, 5)
        >>> products = Products(layer, lambda: layer(torch.ones(2, 3)))
        >>> products.flops
        60
        >>> products()
    """

    def __init__(self, module: nn.Module, forward: Callable[[], object], packed: bool = False):
        self.calls: list[tuple[nn.Linear, torch.Size, torch.dtype]] = []
        layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
        hooks = [layer.register_forward_pre_hook(self._note) for layer in layers]
        try:
            with torch.no_grad():
                forward()
        finally:
            for hook in hooks:
                hook.remove()
        if not self.calls:
            raise ValueError(f"the body must run linear layers, got none in {type(module).__name__}")
        self.flops = sum(2 * shape.numel() * layer.out_features for layer, shape, _ in self.calls)
        shapes = {(shape, dtype) for _, shape, dtype in self.calls}
        self._inputs = {(shape, dtype): torch.randn(shape).to(dtype) for shape, dtype in shapes}
        self._product = torch.ops.mkldnn._linear_pointwise if packed else F.linear
        self._beside = ("none", [], "") if packed else ()  # no activation
        self._weights = [self._packed(layer, shape) if packed else layer.weight for layer, shape, _ in self.calls]

    def _packed(self, layer: nn.Linear, shape: torch.Size) -> Tensor:
        rows = shape.numel() // layer.in_features
        return torch.ops.mkldnn._reorder_linear_weight(layer.weight, rows)

    def _note(self, layer: nn.Linear, arguments: tuple[Tensor, ...]) -> None:
        self.calls.append((layer, arguments[0].shape, arguments[0].dtype))

    @torch.no_grad()
    def __call__(self) -> None:
        for (layer, shape, dtype), weight in zip(self.calls, self._weights, strict=True):
            self._product(self._inputs[shape, dtype], weight, layer.bias, *self._beside)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies by packed weights of this dtype on this machine."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
