"""The section "static", for machines without a GPU: registers, spills, occupancy and predicted times."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks import machine
from benchmarks.gpu_report.run import Run

COMMAND = ("-m", "benchmarks.static_report", "--target", "sm_90")


def run(run: Run) -> None:
    """Print the static report of sm_90; the interpreter is switched off, so that kernels are compiled."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    words = [sys.executable, *COMMAND]
    done = subprocess.run(words, cwd=machine.ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout, flush=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        run.failures.append(f"exit status {done.returncode}: {said[-1] if said else 'no output'}")
