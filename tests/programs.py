"""Programs of this repository as users start them, a process each, without waiting for their imports.

torch, transformers and what they bring take a process five seconds to import. A server that has imported them forks for
each program; what is ours is imported by the program itself.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRELOADED = ["torch", "transformers", "transformers.trainer", "datasets", "peft", "accelerate", "torchmetrics"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)  # what is not installed is left out


def start(
    words: Sequence[str], *, cwd: Path = ROOT, environment: Mapping[str, str] | None = None, streams: Sequence[Path]
) -> multiprocessing.Process:
    """Start `python *words`: a file, or "-m" and a module, and arguments. `streams`: stdin, stdout, stderr."""
    given = dict(os.environ) | {"PYTHONPATH": str(ROOT)} | dict(environment or {})
    process = _context.Process(target=_main, args=([*map(str, words)], str(cwd), given, [*map(str, streams)]))
    process.start()
    return process


def run(
    *words: str | Path,
    cwd: Path = ROOT,
    lines: str = "",
    environment: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """What `python *words` leaves, with `lines` as its input."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
        streams[0].write_text(lines)
        process = start([*map(str, words)], cwd=cwd, environment=environment, streams=streams)
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(words, timeout, *(path.read_text() for path in streams[1:]))
        return subprocess.CompletedProcess(words, process.exitcode, *(path.read_text() for path in streams[1:]))


def _main(words: list[str], cwd: str, environment: dict[str, str], streams: list[str]) -> None:
    """Become the program, in the forked process."""
    gc.freeze()  # what the server has imported stays: collections need not look through it, nor copy its pages
    for number, path in enumerate(streams):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(path, flags), number)
    sys.stdin = open(0, closefd=False)
    multiprocessing.set_start_method(None, force=True)  # as in any process
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    _set_threads()
    sys.path.insert(0, str(ROOT))
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        script = Path(cwd) / words[0]
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")


def _set_threads() -> None:
    """As OMP_NUM_THREADS says, which was read when torch was imported."""
    import torch

    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
