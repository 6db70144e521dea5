"""`gumbel_argmax` against the eager chain of the model cards, on a CPU, interleaved.

    python benchmarks/cpu_kernels.py

64 rows of ModernBERT's vocabulary, float32 and bfloat16, temperature 0 and 1. The chain is float64 noise, argmax,
softmax and gather (no noise at temperature 0). The kernel draws from the same distribution and returns probability,
margin, entropy and log-sum-exp. Every call gets the next of several inputs that together exceed the cache, so both
programs read memory. Output: a table and, as the last line, one JSON object on stdout; a JSON row in the results
folder.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import Tensor

from benchmarks import card_loop, machine, report, timing
from benchmarks.models import DTYPES
from dllm.exits import exit_code
from dllm.tools.command import at_least_one

CPU = torch.device("cpu")
CACHE_BYTES = 2**28
WARMUP = 2
COLUMNS = ("case", "eager ms", "kernel ms", "speed-up", "GB/s", "of read speed")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--rows", type=at_least_one, default=64)
    parser.add_argument("--vocab", type=at_least_one, default=50368)
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["float32", "bfloat16"])
    parser.add_argument("--temperature", nargs="+", type=float, default=[0.0, 1.0])
    parser.add_argument("--impl", choices=["cpu", "reference"], default="cpu")
    parser.add_argument("--repeats", type=at_least_one, default=15)
    parser.add_argument("--threads", type=at_least_one, default=None)
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")
    return parser.parse_args(arguments)


def eager_chain(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The model cards' chain for each position: a token by float64 Gumbel noise, and its probability."""
    tokens = card_loop.TorchNoise().choose(logits, temperature, masked=logits[:, 0] > -torch.inf, step=0)
    return tokens, card_loop.token_probability(logits, tokens)


def kernel(logits: Tensor, temperature: float, impl: str) -> object:
    """`gumbel_argmax`: the same in one pass."""
    from dllm_kernels import gumbel_argmax

    positions = torch.arange(len(logits))
    return gumbel_argmax(logits, temperature=temperature, seeds=0, positions=positions, step=0, impl=impl)


def measure(options: argparse.Namespace, begin: Callable[[str], None]) -> list[dict[str, object]]:
    """The result of each dtype and temperature; runs of all of them and of both programs are interleaved."""
    calls: dict[str, Callable[[], float]] = {}
    for dtype in options.dtype:
        inputs = itertools.cycle(cold_inputs(options.rows, options.vocab, DTYPES[dtype]))
        for temperature in options.temperature:
            programs = {
                "eager": functools.partial(eager_chain, temperature=temperature),
                "kernel": functools.partial(kernel, temperature=temperature, impl=options.impl),
            }
            for name, program in programs.items():
                text = f"{dtype} {temperature:g} {name}"
                calls[text] = functools.partial(timed, program, inputs, functools.partial(begin, text))
    for call in list(calls.values()) * WARMUP:
        call()
    seconds = timing.interleave(calls, options.repeats)
    results = []
    for dtype, temperature in itertools.product(options.dtype, options.temperature):
        eager, fast = (timing.summary(seconds[f"{dtype} {temperature:g} {name}"]) for name in ("eager", "kernel"))
        n_bytes = options.rows * options.vocab * DTYPES[dtype].itemsize
        results.append(
            {
                "dtype": dtype,
                "temperature": temperature,
                "eager_seconds": eager,
                "kernel_seconds": fast,
                "speedup": eager["median"] / fast["median"],
                "bytes": n_bytes,
                "bytes_per_second": n_bytes / fast["median"],
            }
        )
    return results


def timed(program: Callable[[Tensor], object], inputs: itertools.cycle[Tensor], begin: Callable[[], None]) -> float:
    """Seconds of one call on the next input."""
    begin()
    logits = next(inputs)
    return timing.host_seconds(lambda: program(logits))


def cold_inputs(rows: int, vocab: int, dtype: torch.dtype) -> list[Tensor]:
    """Different logits [rows, vocab] that together exceed the cache, at the scale of a trained model's."""
    generator = torch.Generator().manual_seed(0)
    copies = max(2, -(-CACHE_BYTES // (rows * vocab * dtype.itemsize)))
    first = (3 * torch.randn(rows, vocab, generator=generator)).to(dtype)
    return [first.roll(shift, dims=1) for shift in range(copies)]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the row."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    row = report.new_row("cpu_kernels", "benchmarks/cpu_kernels.py", arguments, CPU)
    calls = 2 * len(options.dtype) * len(options.temperature) * (WARMUP + options.repeats)
    with report.progress(total=1 + calls) as begin:
        begin("memory speed")
        row["memory_bytes_per_second"] = machine.bandwidth(CPU)
        row["settings"] = {"rows": options.rows, "vocab": options.vocab, "impl": options.impl}
        row["results"] = measure(options, begin)
    read = row["memory_bytes_per_second"]["read"]
    for result in row["results"]:
        result["share_of_read_speed"] = result["bytes_per_second"] / read
    report.print_table(
        f"gumbel_argmax ({options.impl}) on {options.rows} x {options.vocab}; memory reads {read / 1e9:.1f} GB/s",
        COLUMNS,
        [cells(result) for result in row["results"]],
    )
    path = report.write_row(row, options.out, f"{options.rows}x{options.vocab}-{options.impl}")
    report.print_last_line({"row": str(path), "results": row["results"], "memory": row["memory_bytes_per_second"]})
    return 0


def cells(result: dict[str, object]) -> list[str]:
    """A line of the table."""
    return [
        f"{result['dtype']}, temperature {result['temperature']:g}",
        f"{1000 * result['eager_seconds']['median']:.2f}",
        f"{1000 * result['kernel_seconds']['median']:.2f}",
        f"{result['speedup']:.1f}x",
        f"{result['bytes_per_second'] / 1e9:.1f}",
        f"{result['share_of_read_speed']:.0%}",
    ]


if __name__ == "__main__":
    sys.exit(exit_code("cpu_kernels", main))
