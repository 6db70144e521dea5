"""A linear layer in 8 bits in eager PyTorch: the specification. Formulae: `api.py`."""

from __future__ import annotations

from torch import Tensor

from dllm_kernels.int8 import quantize_rows


def int8_linear(hidden: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """[N, V] of the dtype of `hidden`; arguments as in the public function, already checked.

    Example:
        >>> import torch
        >>> int8_linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[127, 0]], dtype=torch.int8), torch.ones(1), None)
        tensor([[128.]])
    """
    return logits(hidden, weight, scale, bias).to(hidden.dtype)


def logits(hidden: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The same before the result is rounded: float32."""
    q, row_scale = quantize_rows(hidden)
    product = q.double() @ weight.double().t()  # exact: integers below 2^53
    scaled = product.float() * row_scale[:, None] * scale
    return scaled if bias is None else scaled + bias
