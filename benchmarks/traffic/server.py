"""`dllm serve` as a process of its own, and the processor time that a process has taken."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.machine import ROOT

READY = re.compile(r"^serving .* at (http://\S+)$", re.MULTILINE)
START_SECONDS, END_SECONDS = 120.0, 30.0
TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def served(options: Sequence[str], *, threads: int = 1) -> Iterator[tuple[str, int]]:
    """Context manager: `dllm serve` on a free port of this machine; it is ended with SIGTERM.

    Args:
        options: of the command, besides --port.
        threads: of torch.

    Yields:
        Its URL and process id.

    Raises:
        OSError: it ended, or was not ready in time; the message has its last lines.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dllm.cli", "serve", "--port", "0", *options]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
        try:
            yield _url_when_ready(process, log), process.pid
        finally:
            stop(process)


def _url_when_ready(process: subprocess.Popen, log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if found := READY.search(log.read_text()):
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    last = " / ".join(log.read_text().splitlines()[-5:])
    raise OSError(f"dllm serve was not ready, exit code {process.poll()}: {last}")


def stop(process: subprocess.Popen) -> int:
    """End a process with SIGTERM, or SIGKILL where that does not end it in time; returns its exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def cpu_seconds(pid: int) -> float | None:
    """Processor time of a process, all its threads, and its children that have ended; None where there is no /proc.

    Raises:
        OSError: there is no such process.
    """
    if not Path("/proc/self/stat").exists():
        return None
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS
