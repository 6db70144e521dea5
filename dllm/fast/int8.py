"""A linear layer and experts with weights of 8 bits, and how to tell that a model has such layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dllm_kernels import int8_linear, swiglu_experts
from dllm_kernels.int8 import quantize_rows


class _Int8Layer(nn.Module):
    """Weights of 8 bits. What belongs to them stays float32 whatever dtype the model is moved to."""

    def _apply(self, function, recurse=True):
        exact = {
            name: buffer for name, buffer in self._buffers.items() if getattr(buffer, "dtype", None) == torch.float32
        }
        super()._apply(function, recurse)
        for name, before in exact.items():
            if self._buffers[name].dtype != torch.float32:
                self._buffers[name] = before.to(self._buffers[name].device)
        return self


class Int8Linear(_Int8Layer):
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


class Int8Experts(_Int8Layer):
    """Experts of a mixture by :func:`dllm_kernels.swiglu_experts` with weights of 8 bits.

    The scales stay float32 whatever dtype the model is moved to. Quantising takes the memory of one expert in float32
    at a time.

    Args:
        experts: in full, as :func:`dllm.fast.experts.has_swiglu_experts` knows them; they are left as they are.

    Example:
        >>> experts = nn.ParameterDict({"gate_up_proj": torch.randn(2, 8, 6), "down_proj": torch.randn(2, 6, 4)})
        >>> Int8Experts(experts)(torch.ones(3, 6), torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1)).shape
        torch.Size([3, 6])
    """

    def __init__(self, experts: nn.Module):
        super().__init__()
        for name in ("gate_up", "down"):
            weight = getattr(experts, f"{name}_proj").detach()
            small = weight.new_empty(weight.shape, dtype=torch.int8)
            scale = weight.new_empty(weight.shape[:2], dtype=torch.float32)
            for expert, rows in enumerate(weight):
                small[expert], scale[expert] = quantize_rows(rows)
            self.register_buffer(name, small)
            self.register_buffer(f"{name}_scale", scale)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of the chosen experts: [T, H], [T, k] and [T, k], as transformers names them."""
        return swiglu_experts(
            *(hidden_states, self.gate_up, self.down, top_k_index, top_k_weights),
            gate_up_scale=self.gate_up_scale,
            down_scale=self.down_scale,
        )

    def extra_repr(self) -> str:
        experts, width, inner = self.down.shape
        return f"experts={experts}, width={width}, inner={inner}"


def is_int8(model: nn.Module) -> bool:
    """Whether layers of the model have weights of 8 bits, by :func:`dllm.fast.quantize`.

    Example:
        >>> is_int8(nn.Linear(2, 3))
        False
    """
    return any(isinstance(module, _Int8Layer) for module in model.modules())


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
