"""linear_gumbel_argmax beside the head's product and `gumbel_argmax`, from one row to a batch of blocks.

The floor is the larger of one read of the weight and the product's FLOPs, 2 R H V: the benchmark reports both shares.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from dllm_kernels import gumbel_argmax, linear_gumbel_argmax

# width, vocabulary
SHAPES = {"modernbert-large": (1024, 50368), "llada": (4096, 126464), "dream": (3584, 152064), "minilm": (384, 30522)}
CPU_SHAPES = ("minilm",)
ROWS = [1, 16, 32, 64, 128, 256, 1024]  # around each block of rows, and where the fused kernel ends
CPU_ROWS = [16, 64]


@pytest.mark.parametrize("program", ["ours", "stored"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", SHAPES)
def bench_linear_gumbel_argmax(
    measure: Callable[..., None], device: torch.device, shape: str, rows: int, temperature: float, program: str
) -> None:
    if (device.type == "cpu") != (shape in CPU_SHAPES) or (device.type == "cpu" and rows not in CPU_ROWS):
        pytest.skip("measured on another kind of device")
    width, vocab = SHAPES[shape]
    hidden = torch.randn(rows, width, device=device).bfloat16()
    weight = (torch.randn(vocab, width, device=device) * 3 / width**0.5).bfloat16()
    noise = {"temperature": temperature, "seeds": 0, "positions": torch.arange(rows, device=device)}

    def ours(h: torch.Tensor) -> object:
        return linear_gumbel_argmax(h, weight, **noise)

    def stored(h: torch.Tensor) -> object:
        return gumbel_argmax(F.linear(h, weight), **noise)

    measure({"ours": ours, "stored": stored}[program], [hidden], weight.nbytes, flops=2.0 * rows * width * vocab)
