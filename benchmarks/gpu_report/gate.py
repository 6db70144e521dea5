"""The gate before every measurement: the test files that must pass for each operation, and the red checks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import files
from benchmarks.gpu_report.state import FILE

TRITON = "kernels/test_triton.py"
NOISE = ("kernels/test_philox.py", TRITON)
# operation or group of programs: the test files that must pass before it is measured
FILES: dict[str, tuple[str, ...]] = {
    "gumbel_argmax": ("kernels/test_gumbel_argmax.py", *NOISE),
    "linear_gumbel_argmax": ("kernels/test_linear_gumbel_argmax.py", *NOISE),
    "truncation_floor": ("kernels/test_truncation_floor.py", TRITON),
    "transfer_tokens": ("kernels/test_transfer_tokens.py", TRITON),
    "position_noise": ("kernels/test_position_noise.py", *NOISE),
    "masked_cross_entropy": ("kernels/test_masked_cross_entropy.py",),
    "linear_cross_entropy": ("kernels/test_linear_cross_entropy.py", "kernels/test_masked_cross_entropy.py"),
    "sampling": (
        "kernels/test_block_schedule.py",
        "fast/test_gpu.py",
        "fast/test_generate.py",
        "fast/test_generate_inputs.py",
    ),
    "training": ("fast/test_training_graphs_gpu.py",),
}


def failed_checks(out: Path, name: str) -> list[str]:
    """The red checks of `name`, a name of FILES: why it may not be measured. Empty where none is red or none has run.

    Raises:
        ValueError: FILES has no such name.
    """
    if name not in FILES:
        raise ValueError(f"name must be one of {', '.join(FILES)}, got {name!r}")
    return [
        f"{check}: {reason}"
        for check, result in read(out / "tests").items()
        if file_of(check) in FILES[name] or check == f"compute-sanitizer {name}"
        for reason in result["red"]
    ]


def file_of(check: str) -> str:
    """The test file of a check.

    Example:
        >>> file_of("kernels/test_triton.py 2/4")
        'kernels/test_triton.py'
    """
    return check.partition(" ")[0]


def tested(out: Path, names: Sequence[str]) -> bool:
    """Whether every test file of these names has run in this report."""
    files = {file_of(check) for check in read(out / "tests")}
    return all(file in files for name in names for file in FILES[name])


def read(folder: Path) -> dict[str, dict]:
    """The results of the checks in a section's folder; none where the section has not run."""
    path = folder / FILE
    return json.loads(path.read_text()) if path.exists() else {}


def write(folder: Path, results: dict[str, dict]) -> None:
    """Store the results of the checks in a section's folder."""
    files.write_json(folder / FILE, results)
