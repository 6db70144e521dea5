"""Choose block shapes, warps and stages by measurement on the GPU at hand, and keep them for it.

    python -m dllm_kernels.tune [--op NAME ...]
    python -m dllm_kernels.tune --dry-run [--target sm_90]

Candidates are those of :data:`dllm_kernels._tuning.CANDIDATES`, beside the table's own choice. Each is compiled first:
one that spills, or takes more shared memory than a program may have, is out. Then its results are compared with the
table's: tokens must be equal, and of the fused head every bit, since a row alone and the same row in a batch go through
different entries. Then it is timed on the shapes that matter, with a cold L2, and what is fastest wins by the geometric
mean over the shapes; never by the number of rows of a call. The winner of a table is kept as soon as it is found
(:mod:`dllm_kernels._tuning_cache` says where, and for how long it holds) and takes precedence over the table from the
next process on;
DLLM_TUNING=off switches that off.

A dry run lists the candidates, and with a target compiles them; neither needs a GPU.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import sys
from collections.abc import Iterable
from typing import NamedTuple

import torch

from dllm_kernels import _impl, _tuning_cache, offline
from dllm_kernels._workloads import Call, Work, works

TABLES = {
    "gumbel_argmax": ("gumbel_argmax",),
    "linear_gumbel_argmax": ("fused_head_16", "fused_head_32", "fused_rows"),
    "truncation_floor": ("truncation_floor",),
    "masked_cross_entropy": ("masked_cross_entropy",),
    "transfer_tokens": ("transfer_tokens",),
}
# bytes of shared memory that a program may have; source: CUDA C++ Programming Guide, AMD's CDNA 3 ISA guide
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
REPEATS = 50  # for each candidate and shape
FLUSH_BYTES = 2**30  # more than any L2, and a quarter of a millisecond to write at 4 TB/s
MARGIN = 0.98  # what is kept must be faster than the table's choice by more than this machine's noise


class Row(NamedTuple):
    """The result of a candidate: its time relative to the table's choice, or None and why it is out."""

    table: str
    choice: object
    relative: float | None
    note: str


def tune(table: str, target: str) -> list[Row]:
    """Measure every candidate of a table on the current GPU; one that is out is not timed."""
    from dllm_kernels import _tuning

    calls = [(work, work.make("cuda")) for work in works(table)]
    with _tuning.using({}):
        expected = [tuple(x.clone() for x in call()) for _, call in calls]  # a call may write where the last one did
        of_table = [_seconds(call) for _, call in calls]
    found = [Row(table, "as written", 1.0, "")]
    for choice in _tuning.CANDIDATES[table]:
        with _tuning.using({table: choice}):
            note = why_out(table, target) or _disagreement(calls, expected)
            relative = None if note else _geometric_mean([_seconds(call) for _, call in calls], of_table)
        found.append(Row(table, choice, relative, note))
        print(f"{table} {_text(choice)}: {note or f'{relative:.3f}'}", file=sys.stderr, flush=True)
    return found


def winners(rows: Iterable[Row]) -> dict[str, object]:
    """The fastest choice of each table, where it is faster than the table's own by more than noise.

    Example:
        >>> winners([Row("fused_rows", 0, 1.2, ""), Row("fused_rows", 16, 0.9, ""), Row("fused_rows", 32, None, "no")])
        {'fused_rows': 16}
    """
    best: dict[str, Row] = {}
    for row in rows:
        if row.relative is not None and row.relative < (best[row.table].relative if row.table in best else MARGIN):
            best[row.table] = row
    return {table: row.choice for table, row in best.items()}


def why_out(table: str, target: str) -> str:
    """Why the choice in use cannot serve GPUs of that architecture; empty where it can.

    It is compiled for every shape of the table: here and now, no GPU needed.
    """
    for work in works(table):
        for row in offline.compile_call(work.make("meta"), target).values():
            if row.shared > SHARED[target]:
                return f"{row.kernel} takes {row.shared} bytes of shared memory, {SHARED[target]} are there"
            if row.spills:
                return f"{row.kernel} spills {row.spills} bytes"
    return ""


def dry_run(tables: Iterable[str], target: str | None) -> list[Row]:
    """Every candidate, with a target compiled for it."""
    from dllm_kernels import _tuning

    rows = []
    for table in tables:
        for choice in _tuning.CANDIDATES[table]:
            with _tuning.using({table: choice}):
                rows.append(Row(table, choice, None, why_out(table, target) or "compiles" if target else ""))
    return rows


def _disagreement(calls: list[tuple[Work, Call]], expected: list[object]) -> str:
    from triton import OutOfResources

    for (work, call), right in zip(calls, expected, strict=True):
        try:
            got = call()
        except OutOfResources as error:  # of what only the GPU at hand can tell
            return f"cannot be launched: {error}"
        if not work.agrees(got, right, call):
            return f"other results on {work.name}"
    return ""


def _seconds(call: Call) -> float:
    """Median seconds on a cold L2. Nothing waits between the calls: while memory is overwritten the host queues the
    next one, so that its own time, longer than a small kernel's, is not measured."""
    flush, events = _flush(), []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        call()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events) / 1000


@functools.cache
def _flush() -> torch.Tensor:
    return torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")


def _geometric_mean(seconds: list[float], of: list[float]) -> float:
    return math.exp(sum(math.log(a / b) for a, b in zip(seconds, of, strict=True)) / len(of))


def _text(choice: object) -> str:
    return " ".join(f"{k}={v}" for k, v in choice._asdict().items()) if hasattr(choice, "_asdict") else str(choice)


def _print(rows: list[Row]) -> None:
    lines = [("table", "choice", "time / table's", "")]
    for row in rows:
        relative = "" if row.relative is None else f"{row.relative:.3f}"
        lines.append((row.table, _text(row.choice), relative, row.note))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m dllm_kernels.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--op", nargs="+", choices=TABLES, default=list(TABLES), help="tune these; default: all")
    parser.add_argument("--dry-run", action="store_true", help="list the candidates, measure nothing")
    parser.add_argument("--target", choices=SHARED, help="with --dry-run: compile them for this architecture")
    options = parser.parse_args(arguments)
    tables = [table for op in options.op for table in TABLES[op]]
    if options.target and not options.dry_run:
        parser.error("--target needs --dry-run: what is measured is compiled for the GPU at hand")
    if missing := _impl.why_not_triton():
        parser.exit(1, f"{missing}\n")
    if _impl.interpreting() and (options.target or not options.dry_run):
        parser.exit(1, "TRITON_INTERPRET=1 turns kernels into Python functions: unset it to compile them\n")
    if options.dry_run:
        _print(dry_run(tables, options.target))
        return 0
    if not torch.cuda.is_available():
        parser.exit(1, "tuning measures, and there is no GPU here; --dry-run lists what it would measure\n")
    from dllm_kernels import _tuning

    target = _tuning.architecture()
    if target not in SHARED:
        parser.exit(1, f"tuning knows {', '.join(SHARED)}, and this GPU is {target}\n")
    gpu = torch.cuda.get_device_name()
    try:
        _tuning_cache.check_writable(gpu)
    except OSError as error:
        parser.exit(
            1, f"{_tuning_cache.path(gpu).parent} cannot be written to ({error.strerror}): DLLM_CACHE names another\n"
        )
    rows = []
    for table in tables:
        found = tune(table, target)
        _tuning_cache.write(gpu, table, winners(found).get(table), [row._asdict() for row in found])
        rows += found
    _print(rows)
    print(f"kept in {_tuning_cache.path(gpu)}: {', '.join(winners(rows)) or 'nothing, the tables are as fast'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
