"""gumbel_argmax: the kernel beside the eager chain of the model cards, over the vocabularies that matter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import card_loop
from benchmarks.kernels.conftest import cold_copies
from dllm_kernels import gumbel_argmax

# one row (a nearly finished block), one block, a batch of blocks; ModernBERT, LLaDA, Dream
SHAPES = [(1, 50368), (64, 50368), (64, 126464), (64, 152064), (1024, 126464)]
CPU_LIMIT = 64 * 50368


@pytest.mark.parametrize("program", ["kernel", "eager"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def bench_gumbel_argmax(
    measure: Callable[..., None],
    device: torch.device,
    shape: tuple[int, int],
    dtype: torch.dtype,
    temperature: float,
    program: str,
) -> None:
    rows, vocab = shape
    if device.type == "cpu" and rows * vocab > CPU_LIMIT:
        pytest.skip(f"more than {CPU_LIMIT} logits: measured on GPUs")
    positions = torch.arange(rows, device=device)
    masked = torch.ones(rows, dtype=torch.bool, device=device)

    def kernel(logits: torch.Tensor) -> object:
        return gumbel_argmax(logits, temperature=temperature, seeds=0, positions=positions)

    def eager(logits: torch.Tensor) -> object:
        return card_loop.token_probability(logits, card_loop.TorchNoise().choose(logits, temperature, masked, step=0))

    logits = (3 * torch.randn(shape, device=device)).to(dtype)
    measure({"kernel": kernel, "eager": eager}[program], cold_copies(logits), logits.nbytes)
