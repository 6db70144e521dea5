"""The gate: which tests stand behind a row, and what they say of it. Rows are kept whatever that is.

A row's field "tests" has a state and the reasons for it: "green", "red", or "unproven" where tests have not run or not
ended. Results of tests hold for rows that were measured with the same sources.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import files
from benchmarks.gpu_report import state
from benchmarks.gpu_report.sections import LOSS_OPS, SAMPLING_OPS, SECTIONS
from benchmarks.gpu_report.state import DONE, FAILED, Result

GREEN, RED, UNPROVEN, NONE = "green", "red", "unproven", "none"
TRITON = "kernels/test_triton.py"
NOISE = ("kernels/test_philox.py", TRITON)
# operation or kind of programs: the test files that stand behind it
FILES: dict[str, tuple[str, ...]] = {
    "gumbel_argmax": ("kernels/test_gumbel_argmax.py", "kernels/test_draw.py", *NOISE),
    "linear_gumbel_argmax": ("kernels/test_linear_gumbel_argmax.py", "kernels/test_draw.py", *NOISE),
    "truncation_floor": ("kernels/test_truncation_floor.py", TRITON),
    "transfer_tokens": ("kernels/test_transfer_tokens.py", TRITON),
    "position_noise": ("kernels/test_position_noise.py", *NOISE),
    "masked_cross_entropy": ("kernels/test_masked_cross_entropy.py",),
    "linear_cross_entropy": ("kernels/test_linear_cross_entropy.py", "kernels/test_masked_cross_entropy.py"),
    # operations without rows of their own
    "linear_expected_embedding": (
        "kernels/test_softcap.py",
        "kernels/test_linear_expected_embedding.py",
        "kernels/test_triton_expected_embedding.py",
    ),
    "int8_linear": ("kernels/test_int8_linear.py", "kernels/test_int8_triton.py"),
    "sampling": (
        "kernels/test_block_schedule.py",
        "fast/test_gpu.py",
        "fast/test_generate.py",
        "fast/test_generate_inputs.py",
    ),
    "training": ("fast/test_training_graphs_gpu.py",),
}
# number of processes that share a file
SHARED = {
    TRITON: 5,
    "kernels/test_linear_cross_entropy.py": 3,
    "kernels/test_masked_cross_entropy.py": 2,
    "fast/test_gpu.py": 4,
    "fast/test_training_graphs_gpu.py": 2,
}
SANITIZER = "compute-sanitizer"


def parts(file: str) -> list[str]:
    """The names of a test file's checks, one for each process.

    Example:
        >>> parts("fast/test_training_graphs_gpu.py"), parts("kernels/test_philox.py")
        (['fast/test_training_graphs_gpu.py 1/2', 'fast/test_training_graphs_gpu.py 2/2'], ['kernels/test_philox.py'])
    """
    count = SHARED.get(file, 1)
    return [f"{file} {number}/{count}" for number in range(1, count + 1)] if count > 1 else [file]


def behind(row: Mapping[str, object]) -> tuple[str, ...]:
    """The names of :data:`FILES` that stand behind a row; none for the ceilings, which run no code of dllm."""
    if row["kind"] == "kernel":
        return (row["settings"]["op"],)
    if row["kind"] == "training_step":
        return (*LOSS_OPS, "training")
    return () if row["kind"] == "ceilings" else (*SAMPLING_OPS, "sampling")


def results(out: Path) -> dict[str, Result]:
    """The results of all checks in a report's folder."""
    found = [state.read(out, section.name) for section in SECTIONS if section.module == "checks"]
    return {name: result for each in found if each and each.mode == "measured" for name, result in each.items.items()}


def verdict(names: Sequence[str], sources: str | None, checks: Mapping[str, Result]) -> dict[str, object]:
    """What the tests say of operations and programs that were measured with these sources: {"state", "why"}."""
    if not names:
        return {"state": NONE, "why": []}
    wanted = list(dict.fromkeys(part for name in names for file in FILES[name] for part in parts(file)))
    red, unproven = [], []
    for check in [*wanted, *(f"{SANITIZER} {name}" for name in names)]:
        result = checks.get(check)
        if result and result.sources == sources and result.status == FAILED:
            red += [f"{check}: {reason}" for reason in result.why]
        elif check in wanted and not (result and result.sources == sources and result.status == DONE):
            unproven.append(f"{check}: {_why_unproven(result, sources)}")
    if red:
        return {"state": RED, "why": red}
    return {"state": UNPROVEN if unproven else GREEN, "why": unproven}


def _why_unproven(result: Result | None, sources: str | None) -> str:
    if result is None:
        return "not run yet"
    return "; ".join(result.why or ["did not end"]) if result.sources == sources else "ran on other sources"


def stamp(path: Path, checks: Mapping[str, Result]) -> None:
    """Write into a row what its tests say now. Green stays green until a test of the same sources is red."""
    row = json.loads(path.read_text())
    said, before = verdict(behind(row), row.get("sources"), checks), row.get("tests")
    if said != before and not (before and before["state"] == GREEN and said["state"] == UNPROVEN):
        files.write_json(path, row | {"tests": said})


def stamp_all(out: Path) -> None:
    """Stamp every row of a report."""
    checks = results(out)
    for path in _all_rows(out):
        stamp(path, checks)


def _all_rows(out: Path) -> Iterator[Path]:
    for section in SECTIONS:
        yield from state.row_files(out / section.name)
