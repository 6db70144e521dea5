"""The ceilings of this machine, measured: memory speed of a copy, and speed of a bfloat16 matrix product."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import machine, report
from benchmarks.gpu_report import state
from benchmarks.gpu_report.run import Run


class Ceilings(NamedTuple):
    """Bytes per second of a copy, reads plus writes; FLOP/s of a square bfloat16 matrix product."""

    copy: float
    product: float


def run(run: Run) -> None:
    """The section "ceilings": measures both and writes one row."""
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
    """The ceilings measured in this report; None where they are not measured yet."""
    for row in state.rows(out, "ceilings"):
        return Ceilings(row["bytes_per_second"]["copy"], row["flops_per_second"]["bfloat16"])
    return None
