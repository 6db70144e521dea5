"""The sections "kernels" and "kernels-compiled": ceilings, then dllm's operations beside other programs, interleaved.

The first section measures every case beside plain PyTorch. The second one repeats some cases beside what compiles for
seconds: torch.compile, on an operation's first case with and without noise, and installed libraries.
"""

from __future__ import annotations

import functools
import gc
import json
import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import machine, peers, report, timing
from benchmarks.failures import Result, failures_in
from benchmarks.gpu_report import state
from benchmarks.gpu_report.items import Item, Session
from benchmarks.kernels import cases, operations
from benchmarks.kernels.cases import LOSSES, Case
from dllm_kernels import _impl

AT_ONCE = 1
REPEATS = 15
SECONDS = 1.5  # of timing for each case
WARMUP = 2
PREDICTED = report.RESULTS / "predicted-sm_90.json"
# seconds of a case, reckoned: inputs, kernels to compile, rounds; and COMPILING more beside programs that compile
RECKONED = {
    "gumbel_argmax": 0.9,
    "linear_gumbel_argmax": 1.0,
    "truncation_floor": 1.0,
    "transfer_tokens": 0.8,
    "position_noise": 0.6,
    "masked_cross_entropy": 2.5,
    "linear_cross_entropy": 3.0,
}
COMPILING = 9.0
NEVER_COMPILED = ("transfer_tokens", "position_noise")


class Ceilings(NamedTuple):
    """Bytes per second of a copy, reads plus writes; FLOP/s of a square bfloat16 matrix product."""

    copy: float
    product: float


def prepare() -> None:
    """Let the collections before each measurement of memory skip the objects that exist already."""
    gc.freeze()


def items(section: str, *, dry: bool) -> list[Item]:
    """The ceilings and all cases; or the cases that are repeated beside programs that compile."""
    if section == "kernels":
        known = [Item(named(case), RECKONED[case.op], functools.partial(run, case)) for case in cases.on_gpus()]
        return [Item("ceilings", 3.0, measure_ceilings), *known]
    found, seen = [], set()
    for case in cases.on_gpus():
        kind = (case.op, case.temperature)
        compiles = kind not in seen and case.op not in NEVER_COMPILED
        seen.add(kind)
        if compiles or any(peers.installed(peer.package) for peer in peers.PEERS.get(case.op, {}).values()):
            work = functools.partial(run, case, others=True, compiles=compiles)
            found.append(Item(named(case), RECKONED[case.op] + COMPILING, work))
    return found


def named(case: Case) -> str:
    """The name of a case among all of them."""
    return f"{case.op} {case.title}"


def measure_ceilings(session: Session) -> list[str]:
    """Measure memory speed and product speed, and write their row."""
    if session.dry:
        machine.bandwidth(session.device, repeats=1, n_bytes=2**20)
        machine.matmul_speed(session.device, torch.bfloat16, size=32)
        return []
    row = session.new_row("ceilings")
    row["bytes_per_second"] = machine.bandwidth(session.device)
    row["flops_per_second"] = {"bfloat16": machine.matmul_speed(session.device, torch.bfloat16)}
    report.write_row(row, session.folder, "measured")
    return []


def ceilings(out: Path) -> Ceilings | None:
    """The ceilings measured in this report; None where they are not measured yet."""
    for row in state.rows(out, "kernels"):
        if row["kind"] == "ceilings":
            return Ceilings(row["bytes_per_second"]["copy"], row["flops_per_second"]["bfloat16"])
    return None


def run(case: Case, session: Session, *, others: bool = False, compiles: bool = False) -> list[str]:
    """Measure a case and write its row; the error of dllm's program, if there is one."""
    if session.dry:
        small = cases.tiny(case)
        if small not in session.rehearsed:
            rehearse(small, others=others)
        session.rehearsed.add(small)
        return []
    row = row_of(case, session, others=others, compiles=compiles)
    gc.collect()
    torch.cuda.empty_cache()
    parts = [case.op, *(str(part) for part in case.key[1:] if part is not None)] + ["others"] * others
    report.write_row(row, session.folder, "-".join(parts))
    print(f"{named(case)}: {json.dumps(row['providers'])}", flush=True)
    error = row["providers"]["ours"].get("error")
    return [error] if error else []


def row_of(case: Case, session: Session, *, others: bool, compiles: bool) -> dict[str, object]:
    """Measure a case; its row."""
    settings = asdict(case) | {"hidden": case.hidden, "vocab": case.vocab} | ({"others": True} if others else {})
    title = f"{case.title}, others" if others else case.title
    known = {"settings": settings, "title": title, "bytes": case.bytes, "flops": case.flops}
    known |= against_ceilings(case, session.out) | predicted(case)
    return session.new_row("kernel") | known | {"providers": measured(case, session, others=others, compiles=compiles)}


def programs_of(case: Case, *, others: bool, backend: str | None, impl: str = "auto") -> dict[str, operations.Program]:
    """dllm's program and plain PyTorch's, or with `others` dllm's, the eager, the compiled one, and the libraries'."""
    found = operations.programs(case, impl=impl, backend=backend)
    slow: Collection[str] = {"compiled", *peers.PEERS.get(case.op, {})}
    kept = {"ours", "eager", *slow} if others else found.keys() - slow
    return {name: program for name, program in found.items() if name in kept}


def rehearse(case: Case, *, others: bool) -> None:
    """Run every program of a case once on the CPU: dllm's kernels in Triton's interpreter where it is switched on."""
    impl = "triton" if _impl.interpreting() and not _impl.why_not_triton() else "auto"
    for program in programs_of(case, others=others, backend="eager", impl=impl).values():
        program(operations.make_inputs(case, torch.device("cpu")))


def measured(case: Case, session: Session, *, others: bool, compiles: bool) -> dict[str, Result]:
    """Median, quantiles (on a cold L2) and peak memory of each program, or the reason why it has none."""
    programs = programs_of(case, others=others, backend="inductor" if compiles else None)
    inputs, timer = operations.make_inputs(case, session.device), timing.ColdTimer(session.device)
    results: dict[str, Result] = {}
    for name, program in programs.items():
        results[name] = {}
        with failures_in(results, name):
            for _ in range(WARMUP):
                program(inputs)
            operations.free_gradients(inputs)
            with timing.PeakMemory(session.device) as memory:
                program(inputs)
            results[name] = {"peak_bytes": memory.bytes, "peak_how": memory.how}

    def once(name: str) -> float | None:
        with failures_in(results, name):
            return timer(functools.partial(programs[name], inputs))
        return None

    ready = [name for name, result in results.items() if "error" not in result]
    deadline = min(time.monotonic() + SECONDS, session.deadline)
    calls = {name: functools.partial(once, name) for name in ready}
    for name, seconds in timing.interleave(calls, REPEATS, deadline).items():
        if "error" in results[name]:  # in a later round: its earlier times do not count
            continue
        results[name]["seconds"] = timing.summary(seconds)
        if case.op in LOSSES:  # in training half of the tokens are masked
            results[name]["tokens_per_second"] = 2 * case.rows / results[name]["seconds"]["median"]
    return results


def against_ceilings(case: Case, out: Path) -> dict[str, object]:
    """The least time at this report's ceilings; empty where these are not measured."""
    if (found := ceilings(out)) is None:
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
