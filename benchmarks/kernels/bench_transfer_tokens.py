"""transfer_tokens: one launch for the batch beside the model cards' Python loop over the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from benchmarks import card_loop
from dllm_kernels import transfer_tokens

MASK = 103


class Step(NamedTuple):
    """What a transfer gets; the canvas keeps its masks because every call works on `fresh`."""

    canvas: torch.Tensor
    proposals: torch.Tensor
    confidence: torch.Tensor
    counts: torch.Tensor

    def fresh(self) -> torch.Tensor:
        return self.canvas.clone()


@pytest.mark.parametrize("program", ["kernel", "loop"])
@pytest.mark.parametrize("window", [32, 64, 512])
@pytest.mark.parametrize("batch", [1, 8, 64])
def bench_transfer_tokens(
    measure: Callable[..., None], device: torch.device, batch: int, window: int, program: str
) -> None:
    def step() -> Step:
        return Step(
            torch.full((batch, window), MASK, device=device),
            torch.randint(200, 1000, (batch, window), device=device),
            torch.rand(batch, window, device=device),
            torch.full((batch,), 2, device=device),
        )

    def kernel(given: Step) -> object:
        return transfer_tokens(given.fresh(), given.proposals, given.confidence, mask_id=MASK, k=given.counts)

    def loop(given: Step) -> object:
        return card_loop.transfer(given.fresh(), given.proposals, given.confidence, given.counts)

    n_bytes = batch * window * (8 + 8 + 4) + batch * 2 * 8  # canvas, proposals, confidence; two commits a row
    measure({"kernel": kernel, "loop": loop}[program], [step() for _ in range(4)], n_bytes)
