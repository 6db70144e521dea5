"""linear_cross_entropy and masked_cross_entropy beside torch and, where they are installed, Liger, Apple's CCE, QuACK.

Forward and backward, for the masked rows alone, which is what every other program is given too. The useful FLOPs are
6 R H V; peers that know no row weights are given none.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from dllm_kernels import linear_cross_entropy, masked_cross_entropy

# rows, width, vocabulary: masked rows of a batch for LLaDA-8B, Dream-7B, ModernBERT-large and -base; MiniLM on a CPU
SHAPES = {
    "llada": (4096, 4096, 126464),
    "llada-short": (1024, 4096, 126464),
    "dream": (4096, 3584, 152064),
    "modernbert-large": (8192, 1024, 50368),
    "modernbert-base": (8192, 768, 50368),
    "minilm": (512, 384, 30522),
}
CPU_SHAPES = ("minilm",)


class Batch(NamedTuple):
    """hidden [R, H], weight [V, H], targets [R], row_weight [R]."""

    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    row_weight: torch.Tensor


def ours(batch: Batch) -> torch.Tensor:
    return linear_cross_entropy(*batch).loss


def given_logits(batch: Batch) -> torch.Tensor:
    logits = F.linear(batch.hidden, batch.weight)
    return masked_cross_entropy(logits, batch.targets, batch.row_weight, inplace=True).loss


def eager(batch: Batch) -> torch.Tensor:
    nll = F.cross_entropy(F.linear(batch.hidden, batch.weight).float(), batch.targets, reduction="none")
    return (nll * batch.row_weight).sum()


def by_torch(batch: Batch) -> torch.Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(batch.hidden, batch.weight, batch.targets, options=options)


def liger(batch: Batch) -> torch.Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()(batch.weight, batch.hidden, batch.targets)


def apple(batch: Batch) -> torch.Tensor:
    from cut_cross_entropy import linear_cross_entropy

    nll = linear_cross_entropy(batch.hidden, batch.weight, batch.targets, reduction="none")
    return (nll * batch.row_weight).sum()


def quack(batch: Batch) -> torch.Tensor:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy(batch.hidden, batch.weight, batch.targets)


PROGRAMS: dict[str, Callable[[Batch], torch.Tensor]] = {
    "ours": ours,
    "given logits": given_logits,
    "eager": eager,
    "torch": by_torch,
    "liger": liger,
    "apple": apple,
    "quack": quack,
}
NEEDS = {"liger": "liger_kernel", "apple": "cut_cross_entropy", "quack": "quack"}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def bench_linear_cross_entropy(
    measure: Callable[..., None], device: torch.device, shape: str, dtype: torch.dtype, program: str
) -> None:
    if device.type == "cpu" and (shape not in CPU_SHAPES or program in NEEDS):
        pytest.skip("measured on GPUs")
    if device.type == "cuda" and (shape in CPU_SHAPES or dtype != torch.bfloat16):
        pytest.skip("measured on CPUs")
    if program in NEEDS and importlib.util.find_spec(NEEDS[program]) is None:
        pytest.skip(f"{NEEDS[program]} is not installed")
    if program == "torch" and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        pytest.skip("this torch has no chunked F.linear_cross_entropy")
    rows, width, vocab = SHAPES[shape]
    batch = Batch(
        torch.randn(rows, width, device=device).to(dtype).requires_grad_(),
        (torch.randn(vocab, width, device=device) * 3 / width**0.5).to(dtype).requires_grad_(),
        torch.randint(vocab, (rows,), device=device),
        torch.rand(rows, device=device) / rows,
    )

    def step(given: Batch) -> None:
        given.hidden.grad = given.weight.grad = None
        PROGRAMS[program](given).backward()

    measure(step, [batch], flops=6.0 * rows * width * vocab, dtype=dtype)
