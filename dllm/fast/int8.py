"""A linear layer with weights of 8 bits, and how to tell that a model has such layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dllm_kernels import int8_linear
from dllm_kernels.int8 import quantize_rows


class Int8Linear(nn.Module):
    """A linear layer by :func:`dllm_kernels.int8_linear`: its weight has 8 bits, and its input is rounded to 8 bits.

    The weight's scales and the bias stay float32 whatever dtype the model is moved to.

    Args:
        linear: the layer in full, which is left as it is.

    Example:
        >>> layer = nn.Linear(64, 32)
        >>> x = torch.randn(5, 64)
        >>> bool(((Int8Linear(layer)(x) - layer(x)).abs() < 0.05).all())
        True
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = quantize_rows(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())

    def forward(self, hidden: Tensor) -> Tensor:
        return int8_linear(hidden, self.weight, self.scale, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _apply(self, function, recurse=True):
        exact = {name: buffer for name, buffer in self._buffers.items() if name != "weight" and buffer is not None}
        super()._apply(function, recurse)
        for name, before in exact.items():
            if self._buffers[name].dtype != torch.float32:
                self._buffers[name] = before.to(self._buffers[name].device)
        return self


def is_int8(model: nn.Module) -> bool:
    """Whether layers of the model have weights of 8 bits, by :func:`dllm.fast.quantize`.

    Example:
        >>> is_int8(nn.Linear(2, 3))
        False
    """
    return any(type(module) is Int8Linear for module in model.modules())


def check_trainable(model: nn.Module) -> None:
    """Check that a model's weights have gradients.

    Raises:
        ValueError: :func:`dllm.fast.quantize` has replaced some.

    Example:
        >>> check_trainable(nn.Sequential(Int8Linear(nn.Linear(2, 3))))
        Traceback (most recent call last):
        ...
        ValueError: weights of int8 have no gradient: train the model that this one was made of
    """
    if is_int8(model):
        raise ValueError("weights of int8 have no gradient: train the model that this one was made of")
