"""Two processes over gloo, as torchrun would start them."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from tests import programs


def two_ranks(folder: Path, module: str, *arguments: str) -> list[Any]:
    """What `python -m module folder arguments...` leaves in folder/rank{r}.pt, of rank 0 and of rank 1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = ["-m", module, str(folder), *arguments]
    world = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1")
    processes = []
    for rank in "01":
        log = folder / f"rank{rank}.log"
        streams = [Path(os.devnull), log, log]
        processes.append(programs.start(words, environment=world | dict(RANK=rank, LOCAL_RANK=rank), streams=streams))
    try:
        for process in processes:
            process.join(900)
    finally:
        for process in processes:
            process.kill()
    codes = [process.exitcode for process in processes]
    assert codes == [0, 0], "\n".join((folder / f"rank{rank}.log").read_text()[-3000:] for rank in "01")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in "01"]


def leave() -> None:
    """End a rank once all ranks are done. It ends as it is: while torch takes connections down one of its threads may
    still run, and the process is terminated for that now and then."""
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
