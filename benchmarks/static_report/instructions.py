"""Instructions per logit of gumbel_argmax, counted from its disassembly: of a whole pass, and of both kernels in all.

    python -m benchmarks.static_report.instructions [--target sm_90] [--dtype bfloat16] [--candidates] [--json]

A warp issues an instruction for 32 threads. So an instruction per logit is an issue slot per logit, and all of them
divided by the slots a GPU has in a second bound the time from below. No GPU is needed, and nothing is timed.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch

from benchmarks import report
from benchmarks.static_report import launches
from benchmarks.static_report.prediction import CEILINGS, DTYPES, make_call
from dllm_kernels import _impl, _tuning

# (temperature, statistics). Raw statistics at T = 1 are those at the draw's temperature, and share its exponentials; at
# other temperatures they have exponentials of their own.
DRAWS = ((0.0, "raw"), (1.0, "tempered"), (0.7, "raw"))
ROWS = (1024, 64)
PASS_BYTES = 64  # that a thread reads of its column in a pass


class Instructions(NamedTuple):
    """Instructions per logit of one case. per_pass: of a whole pass. total: of both kernels, everything included."""

    dtype: str
    temperature: float
    statistics: str
    block_v: int
    columns: int
    per_pass: float
    total: float


def count(dtype: str, temperature: float, statistics: str, vocab: int, target: str) -> Instructions:
    """Count one case with the shape in use; it compiles two kernels, which takes seconds.

    Raises:
        RuntimeError: Triton's interpreter is on (TRITON_INTERPRET=1): then there is nothing to compile.
    """
    rows = ROWS[0]
    call = make_call("gumbel_argmax", rows, dtype, temperature, vocab=vocab)
    found = launches.record(functools.partial(call, statistics=statistics), target, compiled=True)
    chunk = next(launch for launch in found if launch.name == "_chunk_kernel")
    tokens = PASS_BYTES // getattr(torch, dtype).itemsize
    return Instructions(
        dtype,
        temperature,
        statistics,
        block_v=chunk.constants["BLOCK_V"],
        columns=chunk.constants["COLUMNS"],
        per_pass=chunk.code.loops[0] / tokens,
        total=sum(launch.slots for launch in found) / (rows * vocab),
    )


def counts(dtypes: Sequence[str], vocab: int, target: str, candidates: bool) -> Iterator[Instructions]:
    """Every draw of each dtype, with the shape in use or with each candidate of tuning."""
    for shape in _tuning.CANDIDATES["gumbel_argmax"] if candidates else (None,):
        with _tuning.using({"gumbel_argmax": shape} if shape else None):
            for dtype, draw in product(dtypes, DRAWS):
                yield count(dtype, *draw, vocab, target)


def main(arguments: list[str] | None = None) -> int:
    """Count and print; exit status 1 where Triton cannot compile here."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.static_report.instructions", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--target", choices=CEILINGS, default="sm_90")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bfloat16", "float32"])
    parser.add_argument("--vocab", type=int, default=126464, help="a multiple of 16")
    parser.add_argument("--candidates", action="store_true", help="every candidate of tuning")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    options = parser.parse_args(arguments)
    if options.vocab < 1 or options.vocab % 16:
        parser.error(f"--vocab must be a positive multiple of 16, got {options.vocab}")
    if missing := _impl.why_not_triton():
        parser.exit(1, f"{missing}\n")
    if _impl.interpreting():
        parser.exit(1, "TRITON_INTERPRET=1 turns kernels into Python functions: unset it to compile them\n")
    found = list(counts(options.dtype, options.vocab, options.target, options.candidates))
    if options.json:
        print(json.dumps([row._asdict() for row in found]))
        return 0
    ceilings = CEILINGS[options.target]
    columns = (
        "dtype",
        "T",
        "statistics",
        "BLOCK_V",
        "COLUMNS",
        "a logit, pass",
        "in all",
        *(f"us, {rows} rows" for rows in ROWS),
    )
    lines = []
    for row in found:
        times = (row.total * rows * options.vocab / ceilings.slots * 1e6 for rows in ROWS)
        sizes = (f"{row.temperature:g}", row.statistics, str(row.block_v), str(row.columns))
        lines.append([row.dtype, *sizes, f"{row.per_pass:.2f}", f"{row.total:.2f}", *(f"{us:.3g}" for us in times)])
    title = (
        f"Instructions of gumbel_argmax per logit on {options.target}, and their time if all slots of {ceilings.gpu}"
    )
    report.print_table(f"{title} are used", columns, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
