"""`linear_gumbel_argmax` against the head's product followed by `gumbel_argmax`, on a CPU, interleaved; or
`linear_expected_embedding` against a step of DiffusionGemma in plain PyTorch.

    python benchmarks/cpu_head.py
    python benchmarks/cpu_head.py --operation embedding

1, 16, 64 and 512 rows, heads of ModernBERT-base and MiniLM, float32 and bfloat16, temperature 1. Two programs store the
logits of all rows: one multiplies by F.linear, the other with the fastest library available (oneDNN in float32). Of the
expected embedding: 64 and 256 rows, tied heads of width 256, softcap 30, temperature 0.6; one program is the chain of
operations of a step, as transformers has it, the other the fastest products around our kernel for stored logits. Memory
is the peak of resident memory in separate calls, beyond the arguments. Output: a table and, as the last line, one JSON
object on stdout; a JSON row in the results folder.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
import torch.nn.functional as F

from benchmarks import report, timing
from benchmarks.models import DTYPES
from dllm.exits import exit_code
from dllm.tools.command import at_least_one

CPU = torch.device("cpu")
HEADS = {"modernbert-base": (768, 50368), "minilm": (384, 30522)}  # width, vocabulary
TIED_HEADS = {"tied-32768": (256, 32768), "tied-262144": (256, 262144)}
SOFTCAP = 30.0
WARMUP = 2
COLUMNS = (
    "case",
    "plain, ms",
    "logits stored, ms",
    "ours, ms",
    "ours is, of plain",
    "of stored",
    "plain, MB",
    "logits stored, MB",
    "ours, MB",
    "ours takes",
)


class Case(NamedTuple):
    """Inputs: hidden [R, H], weight [V, H], bias [V] or None and the arguments of the noise."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    noise: dict[str, object]


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--operation", choices=list(PROGRAMS), default="draw")
    parser.add_argument("--head", nargs="+", choices=[*HEADS, *TIED_HEADS], help="default: those of the operation")
    parser.add_argument("--rows", nargs="+", type=at_least_one, help="default: 1 16 64 512, or 64 256 of embedding")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["float32", "bfloat16"])
    parser.add_argument("--temperature", type=float, help="default: 1, or 0.6 of embedding")
    parser.add_argument("--repeats", type=at_least_one, default=9)
    parser.add_argument("--threads", type=at_least_one, default=None)
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")
    options = parser.parse_args(arguments)
    draws = options.operation == "draw"
    options.head = options.head or list(HEADS if draws else TIED_HEADS)
    options.rows = options.rows or ([1, 16, 64, 512] if draws else [64, 256])
    options.temperature = options.temperature or (1.0 if draws else 0.6)
    return options


def make_case(head: str, rows: int, dtype: torch.dtype, temperature: float) -> Case:
    """Inputs whose logits have a standard deviation of about 3."""
    width, vocab = (HEADS | TIED_HEADS)[head]
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=draw).to(dtype)
    weight = (torch.randn(vocab, width, generator=draw) * 3 / width**0.5).to(dtype)
    noise = {"temperature": temperature, "seeds": 0, "positions": torch.arange(rows)}
    return Case(hidden, weight, torch.zeros(vocab, dtype=dtype) if head in HEADS else None, noise)


def eager(case: Case) -> torch.Tensor:
    """F.linear, then `gumbel_argmax` on its result."""
    from dllm_kernels import gumbel_argmax

    return gumbel_argmax(F.linear(case.hidden, case.weight, case.bias), **case.noise).token


def stored(case: Case) -> torch.Tensor:
    """The product by the fastest library, then `gumbel_argmax` on its result."""
    from dllm_kernels import gumbel_argmax
    from dllm_kernels._linear import by_library

    return gumbel_argmax(by_library(case.hidden, case.weight, case.bias), **case.noise).token


def ours(case: Case) -> torch.Tensor:
    """`linear_gumbel_argmax`, which holds logits of a few rows and tokens at a time."""
    from dllm_kernels import linear_gumbel_argmax

    return linear_gumbel_argmax(case.hidden, case.weight, case.bias, **case.noise).token


def plain_step(case: Case) -> torch.Tensor:
    """A step of DiffusionGemma as transformers has it, operation by operation; returns the argmax."""
    z = torch.tanh(F.linear(case.hidden, case.weight).float() / SOFTCAP) * SOFTCAP / case.noise["temperature"]
    torch.multinomial(z.softmax(-1), 1)
    argmax = z.argmax(-1)
    for _ in range(2):  # for what is accepted, and for when to stop
        torch.distributions.Categorical(logits=z).entropy()
    signal = z.to(case.weight.dtype)
    signal.softmax(-1, dtype=torch.float32).to(signal.dtype) @ case.weight
    return argmax


def stored_step(case: Case) -> torch.Tensor:
    """Products by the fastest library around `gumbel_argmax` on the stored logits and a softmax."""
    from dllm_kernels import gumbel_argmax
    from dllm_kernels._linear import by_library

    logits = by_library(case.hidden, case.weight, None)
    found = gumbel_argmax(logits, **case.noise, softcap=SOFTCAP, statistics="tempered")
    z = logits.float().div_(SOFTCAP).tanh_().mul_(SOFTCAP / case.noise["temperature"])
    by_library(z.softmax(-1).to(logits.dtype), case.weight.t(), None)
    return found.argmax


def our_step(case: Case) -> torch.Tensor:
    """`linear_expected_embedding`."""
    from dllm_kernels import linear_expected_embedding

    return linear_expected_embedding(case.hidden, case.weight, **case.noise, softcap=SOFTCAP).sampled.argmax


PROGRAMS: dict[str, dict[str, Callable[[Case], object]]] = {
    "draw": {"eager": eager, "stored": stored, "ours": ours},
    "embedding": {"eager": plain_step, "stored": stored_step, "ours": our_step},
}


def peak_bytes(program: Callable[[Case], object], case: Case) -> int | None:
    """Peak bytes beyond the arguments: the median of three calls, since the allocator's own pages vary."""
    for _ in range(2):  # libraries keep what they allocate in their first calls
        program(case)
    found = []
    for _ in range(3):
        with timing.PeakMemory(CPU) as memory:
            program(case)
        found.append(memory.bytes)
    return None if None in found else statistics.median(found)


def measure(
    options: argparse.Namespace, head: str, rows: int, dtype: str, begin: Callable[[str], None]
) -> dict[str, object]:
    """The result of one case: time and memory of each program; runs are interleaved."""
    case, programs = make_case(head, rows, DTYPES[dtype], options.temperature), PROGRAMS[options.operation]
    text = f"{head} {report.count(rows, 'row')} {dtype}"
    begin(f"{text}: memory")
    peaks = {name: peak_bytes(program, case) for name, program in programs.items()}
    begin(text)
    calls = {
        name: functools.partial(timing.host_seconds, functools.partial(program, case))
        for name, program in programs.items()
    }
    for call in list(calls.values()) * WARMUP:
        call()
    taken = timing.interleave(calls, options.repeats)
    seconds = {name: timing.summary(each) for name, each in taken.items()}
    return {
        "head": head,
        "rows": rows,
        "dtype": dtype,
        "seconds": seconds,
        "fastest_seconds": {name: min(each) for name, each in taken.items()},
        "peak_bytes": peaks,
        "speedup": {name: seconds[name]["median"] / seconds["ours"]["median"] for name in ("eager", "stored")},
        "share_of_memory": peaks["ours"] / peaks["stored"] if peaks["stored"] else None,
        "equal_tokens": float((programs["stored"](case) == programs["ours"](case)).float().mean()),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the row."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    kind = "cpu_head" if options.operation == "draw" else "cpu_embedding"
    row = report.new_row(kind, "benchmarks/cpu_head.py", arguments, CPU)
    row["settings"] = {"temperature": options.temperature}
    cases = [(head, rows, dtype) for head in options.head for rows in options.rows for dtype in options.dtype]
    with report.progress(total=2 * len(cases)) as begin:
        row["results"] = [measure(options, *case, begin) for case in cases]
    report.print_table(
        f"LM head and {options.operation}, with and without stored logits",
        COLUMNS,
        [cells(result) for result in row["results"]],
        notes=[f"slower than the stored product: {case_of(r)}" for r in row["results"] if r["speedup"]["stored"] < 1],
    )
    path = report.write_row(row, options.out, "-".join(f"{rows}" for rows in options.rows))
    report.print_last_line({"row": str(path), "results": row["results"]})
    return 0


def cells(result: dict[str, object]) -> list[str]:
    """A line of the table."""
    seconds, peaks, share = result["seconds"], result["peak_bytes"], result["share_of_memory"]
    return [
        case_of(result),
        *(f"{1000 * seconds[name]['median']:.1f}" for name in seconds),
        *(f"{factor:.2f}x" for factor in result["speedup"].values()),
        *("n/a" if peaks[name] is None else f"{peaks[name] / 1e6:.1f}" for name in seconds),
        "n/a" if share is None else f"{share:.0%}",
    ]


def case_of(result: dict[str, object]) -> str:
    """Head, rows and dtype of a result."""
    return f"{result['head']}, {report.count(result['rows'], 'row')}, {result['dtype']}"


if __name__ == "__main__":
    sys.exit(exit_code("cpu_head", main))
