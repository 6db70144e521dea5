"""The section "tests": test files on the GPU, and compute-sanitizer.

Of kernel tests whole files run, natively; of other files the tests with the marker `gpu`. Each file runs in a separate
process, several at once. Where compute-sanitizer is on the PATH, small calls of each operation run under its memcheck.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from benchmarks.gpu_report import gate
from benchmarks.gpu_report.gate import FILES, TRITON
from benchmarks.gpu_report.run import Run
from benchmarks.gpu_report.sections import LOSS_OPS, SAMPLING_OPS

# number of processes that share a file, for files that compile many kernels; they begin first
SHARED = {TRITON: 5, "kernels/test_linear_cross_entropy.py": 3, "kernels/test_masked_cross_entropy.py": 2}
AT_ONCE = 12
LINE = 300  # most characters of a reason
IN_A_DRY_RUN = "kernels/test_position_noise.py"


class Check(NamedTuple):
    """A command that fails, or counts as red, where something is wrong.

    junit: the file with pytest's results; None for other programs. all_skipped: whether it may skip all of its tests;
    otherwise a check without any test that ran counts as red.
    """

    name: str
    command: list[str]
    junit: Path | None = None
    all_skipped: bool = False


def run(run: Run) -> None:
    """Run every check and store the red ones.

    A dry run runs one test file, and the tests with the marker `gpu`, which are all skipped.
    """
    due = checks(run.folder, dry=run.dry)
    results: dict[str, dict] = {check.name: {"red": ["did not finish"]} for check in due}
    gate.write(run.folder, results)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {pool.submit(outcome, check, run.deadline): check.name for check in due}
        for future in as_completed(futures):
            name = futures[future]
            results[name] = future.result()
            print(f"{name}: {json.dumps(results[name])}", flush=True)
            gate.write(run.folder, results)
    run.failures += [f"{name}: {reason}" for name, result in results.items() for reason in result["red"]]


def checks(folder: Path, *, dry: bool) -> list[Check]:
    """The checks to run, the longest first."""
    files = dict.fromkeys((*SHARED, *(file for files in FILES.values() for file in files)))
    if dry:
        others = [f"tests/{file}" for file in files if not file.startswith("kernels/")]
        junit = folder / "gpu.xml"
        marked = Check("-m gpu", pytest(["-m", "gpu", *others], junit), junit, all_skipped=True)
        return [marked, *_files([IN_A_DRY_RUN], folder)]
    return _files(files, folder) + _sanitized()


def _files(files: Iterable[str], folder: Path) -> list[Check]:
    """The checks of test files, each named after its file; a shared file has one for each part."""
    found = []
    for file in files:
        marker = [] if file.startswith("kernels/") else ["-m", "gpu"]
        count = SHARED.get(file, 1)
        for number in range(1, count + 1):
            part = ["-p", "benchmarks.gpu_report.shard", f"--shard={number}/{count}"] if count > 1 else []
            junit = folder / f"{file.replace('/', '-')}-{number}.xml"
            name = f"{file} {number}/{count}" if count > 1 else file
            found.append(Check(name, pytest([*part, *marker, f"tests/{file}"], junit), junit))
    return found


def pytest(arguments: list[str], junit: Path) -> list[str]:
    """The command that runs tests and writes their results to `junit`."""
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}", *arguments]


def small(ops: Sequence[str]) -> list[str]:
    """The command that calls operations once on tiny shapes."""
    return [sys.executable, "-m", "benchmarks.gpu_report.small", *ops]


def _sanitized() -> list[Check]:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("compute-sanitizer is not on the PATH: memory accesses are not checked", flush=True)
        return []
    before = [sanitizer, "--tool", "memcheck", "--error-exitcode", "86"]
    return [Check(f"compute-sanitizer {op}", before + small([op])) for op in (*SAMPLING_OPS, *LOSS_OPS)]


def outcome(check: Check, deadline: float) -> dict[str, object]:
    """Run a check until `deadline`, a value of ``time.monotonic()``: {"red": reasons, "passed": n, "skipped": n}."""
    if (seconds := deadline - time.monotonic()) <= 0:
        return {"red": ["not started: no time was left"]}
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // AT_ONCE))}
    if check.junit is None:
        environment |= {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # else an access past a tensor may hit cached memory
    try:
        done = subprocess.run(
            check.command, cwd=machine.ROOT, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"red": [f"did not finish within {seconds:.0f} s"]}
    found = parsed(check.junit) if check.junit and check.junit.exists() else {"red": []}
    if done.returncode and not found["red"]:
        said = (done.stdout + done.stderr).strip().splitlines()
        found["red"] = [f"exit status {done.returncode}: {said[-1] if said else 'no output'}"[:LINE]]
    if found.get("passed") == 0 and not found["red"] and not check.all_skipped:
        found["red"] = ["no test ran"]
    return found


def parsed(junit: Path) -> dict[str, object]:
    """Numbers of tests that passed and were skipped, and the failed ones with the first line of their messages."""
    counts, red = {"passed": 0, "skipped": 0}, []
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        wrong = next((case.find(tag) for tag in ("failure", "error") if case.find(tag) is not None), None)
        if wrong is not None:
            why = (wrong.get("message") or wrong.text or "").strip().partition("\n")[0]
            red.append(f"{case.get('name')}: {why}"[:LINE])
        else:
            counts["skipped" if case.find("skipped") is not None else "passed"] += 1
    return counts | {"red": red}
