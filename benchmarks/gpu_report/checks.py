"""The sections of tests: test files on the GPU, each in a process of its own, several at once.

Of kernel tests whole files run, natively; of other files the tests with the marker `gpu`. The section "sanitizer" runs
small calls of each operation under compute-sanitizer's memcheck.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from benchmarks.gpu_report.gate import FILES, SANITIZER, SHARED, parts
from benchmarks.gpu_report.items import Item, OutOfTime, Session
from benchmarks.gpu_report.sections import LOSS_OPS, SAMPLING_OPS
from dllm_kernels import _extension

AT_ONCE = 12
LINE = 300  # most characters of a reason
COMPILED = "test_a_compiled_body"  # of fast/test_gpu.py; seven graphs of inductor, which take a minute
IN_A_DRY_RUN = "kernels/test_position_noise.py"
# seconds of a check, reckoned: of them 18 for twelve processes that import torch and start CUDA at once
RECKONED = {
    "kernels/test_triton.py": 80.0,
    "kernels/test_linear_cross_entropy.py": 65.0,
    "kernels/test_masked_cross_entropy.py": 55.0,
    "kernels/test_philox.py": 25.0,
    "kernels/test_position_noise.py": 25.0,
    "fast/test_gpu.py": 60.0,
    "fast/test_training_graphs_gpu.py": 50.0,
}
OTHERS, SANITIZED = 40.0, 75.0


class Check(NamedTuple):
    """A command that fails where something is wrong.

    junit: the file with pytest's results; None for other programs. all_skipped: whether it may skip all of its tests;
    otherwise a check without any test that ran is red.
    """

    name: str
    command: list[str]
    junit: str | None = None
    all_skipped: bool = False


def prepare() -> None:
    """Build the C++ extension, or wait for it, before many processes ask for it."""
    _extension.load()


def items(section: str, *, dry: bool) -> list[Item]:
    """The section's checks, the longest first."""
    found = _rehearsed(section) if dry else _checks(section)
    expected = {check.name: RECKONED.get(check.name.partition(" ")[0], OTHERS) for check in found}
    if section == "sanitizer":
        expected = dict.fromkeys(expected, SANITIZED)
    return [
        Item(check.name, expected[check.name], functools.partial(outcome, check))
        for check in sorted(found, key=lambda check: -expected[check.name])
    ]


def _checks(section: str) -> list[Check]:
    if section == "sanitizer":
        sanitizer = [SANITIZER, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "86"]
        return [Check(f"{SANITIZER} {op}", sanitizer + small(op)) for op in (*SAMPLING_OPS, *LOSS_OPS)]
    if section == "compiled-tests":
        return [_of_file(COMPILED, "fast/test_gpu.py", ["-m", "gpu", "-k", COMPILED])]
    files = dict.fromkeys((*SHARED, *(file for files in FILES.values() for file in files)))
    behind_rows = {file for op in (*SAMPLING_OPS, *LOSS_OPS) for file in FILES[op]}
    of_kernels = [file for file in files if file.startswith("kernels/") and file in behind_rows]
    wanted = of_kernels if section == "kernel-tests" else [file for file in files if file not in of_kernels]
    return [_of_file(part, file, _selected(file, part)) for file in wanted for part in parts(file)]


def _selected(file: str, part: str) -> list[str]:
    """The options of pytest that select the tests of a part of a file."""
    if file.startswith("kernels/"):
        marked = []
    else:
        marked = ["-m", "gpu"] + (["-k", f"not {COMPILED}"] if file == "fast/test_gpu.py" else [])
    shard = part.removeprefix(file).strip()
    return ["-p", "benchmarks.gpu_report.shard", f"--shard={shard}", *marked] if shard else marked


def _of_file(name: str, file: str, options: Sequence[str], *, all_skipped: bool = False) -> Check:
    junit = f"{re.sub('[^a-z0-9_]+', '-', name)}.xml"
    words = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
    return Check(name, [*words, *options, f"tests/{file}"], junit, all_skipped)


def _rehearsed(section: str) -> list[Check]:
    """What stands for the checks on a machine without a GPU: one of them, or the first of each file, all skipped."""
    if section == "sanitizer":
        return [Check("position_noise", small("position_noise"))]
    if section == "kernel-tests":
        shard = ["-p", "benchmarks.gpu_report.shard", "--shard=1/2"]
        return [_of_file(f"{IN_A_DRY_RUN} 1/2", IN_A_DRY_RUN, shard)]
    first = [check for check in _checks(section) if not re.search(r" [2-9]/", check.name)]
    return [check._replace(all_skipped=True) for check in first]


def small(op: str) -> list[str]:
    """The command that calls an operation once on tiny shapes."""
    return [sys.executable, "-m", "benchmarks.gpu_report.small", op]


def missing(section: str) -> str:
    """What a section needs that is not on this machine; empty where nothing is missing."""
    if section == "sanitizer" and shutil.which(SANITIZER) is None:
        return f"the section sanitizer needs {SANITIZER} on the PATH"
    return ""


def outcome(check: Check, session: Session) -> list[str]:
    """Run a check until the session's deadline; the failed tests with the first lines of their messages.

    Raises:
        OutOfTime: it did not end, and no test had failed until then.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // AT_ONCE))}
    if check.junit is None:
        environment |= {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # else an access past a tensor may hit cached memory
    seconds, command = max(session.seconds_left, 0.1), check.command
    junit = session.folder / check.junit if check.junit else None
    if junit:
        junit.unlink(missing_ok=True)
        command = [*command, f"--junitxml={junit}"]
    try:
        done = subprocess.run(
            command, cwd=machine.ROOT, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        late = f"did not end within {seconds:.0f} s"
        if failed := failed_so_far(error.stdout or b""):
            return [*failed, late]
        raise OutOfTime(late) from None
    ran, red = parsed(junit) if junit and junit.exists() else (None, [])
    if done.returncode and not red:
        said = (done.stdout + done.stderr).strip().splitlines()
        red = [f"exit status {done.returncode}: {said[-1] if said else 'no output'}"[:LINE]]
    if ran == 0 and not red and not check.all_skipped:
        red = ["no test ran"]
    return red


def failed_so_far(printed: bytes) -> list[str]:
    """The tests that pytest -v has called failed.

    Example:
        >>> failed_so_far(b"tests/a.py::test_b[1] PASSED [ 1%]\\ntests/a.py::test_c[x] FAILED [ 2%]\\n")
        ['test_c[x]: failed']
    """
    return [f"{name}: failed" for name in re.findall(r"::(\S.*?) (?:FAILED|ERROR) ", printed.decode(errors="replace"))]


def parsed(junit: Path) -> tuple[int, list[str]]:
    """How many tests ran and passed, and the failed ones with the first lines of their messages."""
    passed, red = 0, []
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        wrong = next((case.find(tag) for tag in ("failure", "error") if case.find(tag) is not None), None)
        if wrong is not None:
            why = (wrong.get("message") or wrong.text or "").strip().partition("\n")[0]
            red.append(f"{case.get('name')}: {why}"[:LINE])
        else:
            passed += case.find("skipped") is None
    return passed, red
