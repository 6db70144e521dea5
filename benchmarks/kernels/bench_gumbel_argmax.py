"""gumbel_argmax against the eager chain of the model cards, on the vocabularies of known models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.kernels.cases import Case

# one row (a nearly finished block), one block, a batch of blocks; ModernBERT, LLaDA, Dream
SHAPES = [(1, "modernbert-large"), (64, "modernbert-large"), (64, "llada-8b"), (64, "dream-7b"), (1024, "llada-8b")]
CPU_LIMIT = 64 * 50368


@pytest.mark.parametrize("program", ["ours", "eager", "compiled", "flashinfer"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}-{shape[1]}")
def bench_gumbel_argmax(
    measure_case: Callable[[Case, str], None],
    device: torch.device,
    shape: tuple[int, str],
    dtype: str,
    temperature: float,
    program: str,
) -> None:
    case = Case("gumbel_argmax", *shape, dtype, temperature)
    if device.type == "cpu" and (case.rows * case.vocab > CPU_LIMIT or program == "compiled"):
        pytest.skip("measured on GPUs")
    measure_case(case, program)
