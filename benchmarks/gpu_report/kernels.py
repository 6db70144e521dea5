"""The sections "kernels-...": dllm's operations against plain PyTorch and installed libraries, interleaved."""

from __future__ import annotations

import functools
import gc
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import measure, report, timing
from benchmarks.gpu_report import ceilings
from benchmarks.gpu_report.run import Run
from benchmarks.kernels import cases, operations
from benchmarks.kernels.cases import LOSSES, Case
from dllm_kernels import _impl

REPEATS, QUICK_REPEATS = 21, 7
SECONDS = 3.0  # of timing for each case
WARMUP = 2
PREDICTED = report.RESULTS / "predicted-sm_90.json"


def run(run: Run) -> None:
    """Measure each case of the section's operations and write a row.

    torch.compile takes seconds for each case, so it runs only for an operation's first case with and without noise.
    """
    gc.freeze()  # existing objects stay, so the collections before each measurement of memory can skip them
    seen: set[tuple[str, float]] = set()
    for case in dict.fromkeys(cases.tiny(case) if run.dry else case for case in cases.on_gpus()):
        if case.op not in run.section.needs or not run.may_measure(f"{case.op} {case.title}", case.op):
            continue
        kind = (case.op, case.temperature)
        compiles = kind not in seen and not (run.quick and seen)
        seen.add(kind)
        if run.dry:
            rehearse(case)
            print(f"{case.op} {case.title}: ran, not timed", flush=True)
            continue
        row = row_of(case, run, compiles)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.synchronize()  # raises after an illegal access, since nothing more can be measured then
        name = f"{case.op}-{'-'.join(str(part) for part in case.key[1:] if part is not None)}"
        report.write_row(row, run.folder, name)
        print(f"{case.op} {case.title}: {json.dumps(row['providers'])}", flush=True)
        if error := row["providers"]["ours"].get("error"):
            run.failures.append(f"{case.op} {case.title}: {error}")


def row_of(case: Case, run: Run, compiles: bool) -> dict[str, object]:
    """Measure a case; its row."""
    settings = asdict(case) | {"hidden": case.hidden, "vocab": case.vocab}
    known = {"settings": settings, "title": case.title, "bytes": case.bytes, "flops": case.flops}
    known |= against_ceilings(case, run.out) | predicted(case)
    return run.new_row("kernel") | known | {"providers": measured(case, run, compiles)}


def rehearse(case: Case) -> None:
    """Run every program of a case once on the CPU: dllm's kernels in Triton's interpreter where it is switched on."""
    impl = "triton" if _impl.interpreting() and not _impl.why_not_triton() else "auto"
    for program in operations.programs(case, impl=impl, backend="eager").values():
        program(operations.make_inputs(case, torch.device("cpu")))


def measured(case: Case, run: Run, compiles: bool) -> dict[str, measure.Result]:
    """Median, quantiles (on a cold L2) and peak memory of each program, or the reason why it has none."""
    programs = operations.programs(case, backend="inductor" if compiles else None)
    inputs, timer = operations.make_inputs(case, run.device), timing.ColdTimer(run.device)
    results: dict[str, measure.Result] = {}
    for name, program in programs.items():
        results[name] = {}
        with measure.failures_in(results, name):
            for _ in range(WARMUP):
                program(inputs)
            operations.free_gradients(inputs)
            with timing.PeakMemory(run.device) as memory:
                program(inputs)
            results[name] = {"peak_bytes": memory.bytes, "peak_how": memory.how}

    def once(name: str) -> float | None:
        with measure.failures_in(results, name):
            return timer(functools.partial(programs[name], inputs))
        return None

    ready = [name for name, result in results.items() if "error" not in result]
    deadline = min(time.monotonic() + SECONDS, run.deadline)
    calls = {name: functools.partial(once, name) for name in ready}
    for name, seconds in timing.interleave(calls, QUICK_REPEATS if run.quick else REPEATS, deadline).items():
        if "error" in results[name]:  # in a later round: its earlier times do not count
            continue
        results[name]["seconds"] = timing.summary(seconds)
        if case.op in LOSSES:  # in training half of the tokens are masked
            results[name]["tokens_per_second"] = 2 * case.rows / results[name]["seconds"]["median"]
    return results


def against_ceilings(case: Case, out: Path) -> dict[str, object]:
    """The least time at this report's ceilings; empty where these are not measured."""
    if (found := ceilings.read(out)) is None:
        return {}
    return {"ceilings": found._asdict(), "floor_seconds": case.floor_seconds(*found)}


def predicted(case: Case, path: Path = PREDICTED) -> dict[str, object]:
    """The stored prediction for a case (benchmarks.static_report); empty where there is none."""
    if not path.exists():
        return {}
    keys = ("op", "rows", "hidden", "vocab", "dtype", "temperature")
    stored = json.loads(path.read_text())
    found = [row for row in stored["rows"] if tuple(row[key] for key in keys) == case.key]
    return {"predicted_seconds": found[0]["seconds"]} if found else {}
