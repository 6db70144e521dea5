"""A stand-in for Slurm: programs on PATH that do what a script of ours needs of sbatch, srun and scontrol."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

# as Slurm: runs a copy of the script, that lies elsewhere, on the first machine of the job
SBATCH = """
export SLURM_NNODES=2
while [[ $1 == --* ]]; do
    [[ $1 == --nodes ]] && SLURM_NNODES=$2
    shift 2
done
export SLURM_SUBMIT_DIR=$PWD SLURM_JOB_ID=70123 SLURM_JOB_NODELIST=node[1-9]
cp "$1" "$FAKES/slurm_script"
shift
cd / && exec bash "$FAKES/slurm_script" "$@"
"""
# runs the task once for each machine
SRUN = """
shift
for ((node = 0; node < SLURM_NNODES; node++)); do SLURM_NODEID=$node "$@"; done
"""
SCONTROL = 'echo node1; echo node2; echo "$*" >> "$FAKES/asked"'


def login_node(folder: Path, dropped: tuple[str, ...] = (), **programs: str) -> dict[str, str]:
    """The environment of a machine where Slurm may be called.

    Args:
        folder: for the stand-ins; it is FAKES there.
        dropped: beginnings of names of variables that the machine does not have, besides those of Slurm.
        programs: bodies of further programs, by name.
    """
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    for name, body in dict(sbatch=SBATCH, srun=SRUN, scontrol=SCONTROL, **programs).items():
        file = folder / name
        file.write_text(f"#!/usr/bin/env bash\n{body}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", *dropped))}
    return kept | dict(FAKES=str(folder), PATH=f"{folder}{os.pathsep}{kept['PATH']}")


def started(environment: dict[str, str]) -> list[list[str]]:
    """What the stand-ins have noted in FAKES/started, a JSON line each."""
    path = Path(environment["FAKES"]) / "started"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
