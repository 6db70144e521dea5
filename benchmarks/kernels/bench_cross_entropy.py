"""linear_cross_entropy and masked_cross_entropy against torch and, where installed, Liger, Apple's CCE and QuACK.

Forward and backward on the masked rows only; the program "full logits" gets all rows. The useful FLOPs are 6 R H V.
Peers without row weights are given none.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import peers
from benchmarks.kernels.cases import Case

# masked rows of a batch for LLaDA-8B, Dream-7B, ModernBERT-large and -base; MiniLM on a CPU
SHAPES = [
    ("llada-8b", 4096),
    ("llada-8b", 1024),
    ("dream-7b", 4096),
    ("modernbert-large", 8192),
    ("modernbert-base", 8192),
    ("minilm", 512),
]
PROGRAMS = ["ours", "stored", "eager", "torch", "full logits", *peers.PEERS["linear_cross_entropy"]]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}-{shape[1]}")
def bench_linear_cross_entropy(
    measure_case: Callable[[Case, str], None], device: torch.device, shape: tuple[str, int], dtype: str, program: str
) -> None:
    head, rows = shape
    if (device.type == "cpu") != (head == "minilm") or (device.type == "cuda" and dtype != "bfloat16"):
        pytest.skip("measured on another kind of device")
    measure_case(Case("linear_cross_entropy", rows, head, dtype), program)


@pytest.mark.parametrize("program", ["ours", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [("llada-8b", 1024), ("minilm", 256)], ids=lambda shape: f"{shape[0]}-{shape[1]}")
def bench_masked_cross_entropy(
    measure_case: Callable[[Case, str], None], device: torch.device, shape: tuple[str, int], dtype: str, program: str
) -> None:
    head, rows = shape
    if (device.type == "cpu") != (head == "minilm"):
        pytest.skip("measured on another kind of device")
    measure_case(Case("masked_cross_entropy", rows, head, dtype), program)
