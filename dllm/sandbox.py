"""Runs a generated program in a process of its own, with limits of time and memory.

This keeps accidents away from an evaluation or a training run: endless loops, exhausted memory, exit(), files in the
working folder. It is no protection against hostile code. lm-eval runs tasks with `unsafe_code` only with
--confirm_run_unsafe_code.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

CPU_SECONDS = 3  # as long as code_eval of Hugging Face's evaluate gives a program
WALL_SECONDS = 15.0  # of a machine that does other things besides
MEGABYTES = 4096
_FILE_MEGABYTES = 16
# The last line is not reached by a program that ends its process early, whatever exit status it chooses. The alarm is
# for a program whose parent is killed while it runs.
_RUNNER = """
import resource, runpy, signal, sys
finished, cpu_seconds, megabytes, file_megabytes, alarm = sys.argv.pop(), *map(int, sys.argv[1:5])
signal.alarm(alarm)
resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
resource.setrlimit(resource.RLIMIT_FSIZE, (file_megabytes << 20, file_megabytes << 20))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
sys.argv[:] = ["program.py"]
runpy.run_path("program.py", run_name="__main__")
open(finished, "x").close()
"""


def runs_to_its_end(
    program: str,
    *,
    cpu_seconds: int = CPU_SECONDS,
    wall_seconds: float = WALL_SECONDS,
    megabytes: int = MEGABYTES,
) -> bool:
    """Whether a Python program runs to its last line, without an exception and within its limits.

    It runs in an empty folder, with nothing to read from and none of this process's environment but PATH. Every process
    that it leaves behind is killed.

    Args:
        program: source code.
        cpu_seconds: CPU time.
        wall_seconds: time on the clock.
        megabytes: address space, in MiB.

    Raises:
        OSError: the system has no limits for processes (Windows).

    Example:
        >>> runs_to_its_end("assert 2 + 2 == 4"), runs_to_its_end("raise SystemExit(0)")
        (True, False)
    """
    if os.name != "posix":
        raise OSError("generated programs run with limits that only Unix has: score code tasks there")
    with tempfile.TemporaryDirectory(prefix="dllm-program-") as outer:
        folder, finished = Path(outer, "work"), Path(outer, "finished")
        folder.mkdir()
        (folder / "program.py").write_text(program, encoding="utf-8", errors="replace")
        limits = [str(number) for number in (cpu_seconds, megabytes, _FILE_MEGABYTES, math.ceil(wall_seconds) + 1)]
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _RUNNER, *limits, str(finished)],
            cwd=folder,
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(folder), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            ended_well = process.wait(timeout=wall_seconds) == 0
        except subprocess.TimeoutExpired:
            ended_well = False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return ended_well and finished.exists()
