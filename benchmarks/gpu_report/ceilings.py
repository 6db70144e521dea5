"""What this machine can do at most, measured: a copy in memory, a product of bfloat16 matrices."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import machine, report
from benchmarks.gpu_report import state
from benchmarks.gpu_report.run import Run


class Ceilings(NamedTuple):
    """Bytes per second of a copy, read and written together; FLOP/s of a square product of bfloat16 matrices."""

    copy: float
    product: float


def run(run: Run) -> None:
    """The section: one row."""
    if run.dry:
        machine.bandwidth(run.device, repeats=1, n_bytes=2**20)
        machine.matmul_speed(run.device, torch.bfloat16, size=32)
        return
    row = run.new_row("ceilings")
    row["bytes_per_second"] = machine.bandwidth(run.device)
    row["flops_per_second"] = {"bfloat16": machine.matmul_speed(run.device, torch.bfloat16)}
    print(f"{row['bytes_per_second']} {row['flops_per_second']}", flush=True)
    report.write_row(row, run.folder, "measured")


def read(out: Path) -> Ceilings | None:
    """Those measured in this report; None before."""
    for row in state.rows(out, "ceilings"):
        return Ceilings(row["bytes_per_second"]["copy"], row["flops_per_second"]["bfloat16"])
    return None
