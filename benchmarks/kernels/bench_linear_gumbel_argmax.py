"""linear_gumbel_argmax against the head's product followed by `gumbel_argmax`, from one row to a batch of blocks.

The lower bound is one read of the weight or the product's 2 R H V FLOPs: the benchmark reports the share of both.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.kernels.cases import Case

ROWS = [1, 16, 32, 64, 128, 256, 1024]  # around each block of rows, and where the fused kernel ends
CPU_ROWS = [16, 64]


@pytest.mark.parametrize("program", ["ours", "stored"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("head", ["modernbert-large", "llada-8b", "dream-7b", "minilm"])
def bench_linear_gumbel_argmax(
    measure_case: Callable[[Case, str], None],
    device: torch.device,
    head: str,
    rows: int,
    temperature: float,
    program: str,
) -> None:
    if (device.type == "cpu") != (head == "minilm") or (device.type == "cpu" and rows not in CPU_ROWS):
        pytest.skip("measured on another kind of device")
    measure_case(Case("linear_gumbel_argmax", rows, head, temperature=temperature), program)
