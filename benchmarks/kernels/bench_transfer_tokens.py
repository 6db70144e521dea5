"""transfer_tokens, one launch for the batch, against the model cards' Python loop over the rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.kernels.cases import Case


@pytest.mark.parametrize("program", ["ours", "eager"])
@pytest.mark.parametrize("window", [32, 64, 512])
@pytest.mark.parametrize("batch", [1, 8, 64])
def bench_transfer_tokens(measure_case: Callable[[Case, str], None], batch: int, window: int, program: str) -> None:
    measure_case(Case("transfer_tokens", batch, dtype="float32", window=window), program)
