"""`linear_cross_entropy` against other ways to compute head and loss on a CPU, forward and backward, interleaved.

    python benchmarks/cpu_cross_entropy.py

512 masked of 1024 rows, heads of MiniLM and ModernBERT-base, float32 and bfloat16, with a bias and row weights 1/t:
    full      the head on every row and F.cross_entropy on [B, V, L], as in dLLM
    gathered  the head on the masked rows, then F.cross_entropy
    torch     F.linear_cross_entropy in chunks on the masked rows, in versions of torch that have it; no row weights
    ours      linear_cross_entropy on all rows and their weights
Memory is the peak of resident memory in a separate call, beyond its arguments and the gradients that exist by then:
`torch` and `ours` form gradients in the forward, the others in the backward. Output: a table and, as the last line, one
JSON object on stdout; a JSON row in the results folder.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import report, timing
from benchmarks.models import DTYPES
from dllm.exits import exit_code
from dllm.tools.command import at_least_one

CPU = torch.device("cpu")
HEADS = {"minilm": (384, 30522), "modernbert-base": (768, 50368)}  # width, vocabulary
FORM_GRADIENTS_IN_FORWARD = ("torch", "ours")
WARMUP = 1
COLUMNS = ("head", "program", "ms", "ours is", "peak above gradients, MB", "ours takes")


class Batch(NamedTuple):
    """Inputs of a loss: hidden [N, H], head weight [V, H] and bias [V], targets [N] and row weights [N]."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    targets: Tensor
    row_weight: Tensor
    masked: Tensor  # int64, rows with a nonzero weight

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.hidden, self.weight, self.bias


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--head", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["float32", "bfloat16"])
    parser.add_argument("--rows", type=at_least_one, default=1024)
    parser.add_argument("--masked", type=at_least_one, default=512)
    parser.add_argument("--batch", type=at_least_one, default=4, help="sequences that the rows are divided into")
    parser.add_argument("--repeats", type=at_least_one, default=7)
    parser.add_argument("--threads", type=at_least_one, default=None)
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")
    options = parser.parse_args(arguments)
    if not 0 < options.masked <= options.rows or options.rows % options.batch:
        parser.error("masked must be from 1 to rows, and rows a multiple of batch")
    return options


def make_batch(options: argparse.Namespace, head: str, dtype: torch.dtype) -> Batch:
    """Hidden states and a head whose logits have a standard deviation of about 3, and row weights, all different."""
    width, vocab = HEADS[head]
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(options.rows, width, generator=draw).to(dtype)
    weight = (torch.randn(vocab, width, generator=draw) * 3 / width**0.5).to(dtype)
    masked = torch.randperm(options.rows, generator=draw)[: options.masked].sort().values
    row_weight = torch.zeros(options.rows)
    row_weight[masked] = 1 / torch.rand(options.masked, generator=draw).clamp(min=1e-3) / options.masked
    targets = torch.randint(vocab, (options.rows,), generator=draw)
    leaves = (hidden, weight, torch.zeros(vocab, dtype=dtype))
    return Batch(*(leaf.requires_grad_() for leaf in leaves), targets, row_weight, masked)


def full(batch: Batch, sequences: int) -> Tensor:
    """As in dLLM: logits and loss of every position, then multiplied by weight and mask."""
    logits = F.linear(batch.hidden.view(sequences, -1, batch.hidden.shape[1]), batch.weight, batch.bias)
    nll = F.cross_entropy(logits.transpose(1, 2), batch.targets.view(sequences, -1), reduction="none")
    return (nll * batch.row_weight.view(sequences, -1)).sum()


def gathered(batch: Batch) -> Tensor:
    """Plain PyTorch on the masked rows only."""
    logits = F.linear(batch.hidden[batch.masked], batch.weight, batch.bias)
    nll = F.cross_entropy(logits, batch.targets[batch.masked], reduction="none")
    return (nll * batch.row_weight[batch.masked]).sum()


def by_torch(batch: Batch) -> Tensor:
    """F.linear_cross_entropy, with the same weight for all masked rows."""
    return F.linear_cross_entropy(
        batch.hidden[batch.masked],
        batch.weight,
        batch.targets[batch.masked],
        linear_bias=batch.bias,
        reduction="mean",
        options=torch.nn.LinearCrossEntropyOptions(),
    )


def ours(batch: Batch) -> Tensor:
    """`linear_cross_entropy` on all rows; it skips those of weight 0 itself."""
    from dllm_kernels import linear_cross_entropy

    return linear_cross_entropy(batch.hidden, batch.weight, batch.targets, batch.row_weight, bias=batch.bias).loss


def programs(options: argparse.Namespace) -> dict[str, Callable[[Batch], Tensor]]:
    """The programs that this version of torch has, by name."""
    found = {"full": functools.partial(full, sequences=options.batch), "gathered": gathered}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        found["torch"] = by_torch
    return found | {"ours": ours}


def peak_above_gradients(name: str, program: Callable[[Batch], Tensor], batch: Batch) -> int | None:
    """Peak bytes of forward and backward beyond the arguments, and beyond the gradients once they exist."""
    for _ in range(2):  # libraries keep what they allocate in their first calls
        step(program, batch)
    gradients = sum(leaf.grad.nbytes for leaf in batch.leaves)
    for leaf in batch.leaves:
        leaf.grad = None
    with timing.PeakMemory(CPU) as forward:
        loss = program(batch)
    with timing.PeakMemory(CPU) as backward:
        loss.backward()
    if forward.bytes is None:
        return None
    formed = gradients if name in FORM_GRADIENTS_IN_FORWARD else 0
    kept = backward.before - forward.before
    return max(forward.bytes - formed, kept + backward.bytes - gradients)


def step(program: Callable[[Batch], Tensor], batch: Batch) -> None:
    """Forward and backward, into new gradients."""
    for leaf in batch.leaves:
        leaf.grad = None
    program(batch).backward()


def measure(
    options: argparse.Namespace, head: str, dtype: str, begin: Callable[[str], None]
) -> list[dict[str, object]]:
    """The result of each program on one head and dtype; runs are interleaved."""
    batch = make_batch(options, head, DTYPES[dtype])
    calls: dict[str, Callable[[], float]] = {}
    peaks: dict[str, int | None] = {}
    for name, program in programs(options).items():
        begin(f"{head} {dtype} {name}: memory")
        peaks[name] = peak_above_gradients(name, program, batch)
        one = functools.partial(step, program, batch)
        calls[name] = functools.partial(timed, one, functools.partial(begin, f"{head} {dtype} {name}"))
    for call in list(calls.values()) * WARMUP:
        call()
    seconds = {name: timing.summary(taken) for name, taken in timing.interleave(calls, options.repeats).items()}
    return [
        {
            "head": head,
            "dtype": dtype,
            "program": name,
            "seconds": seconds[name],
            "peak_bytes": peaks[name],
            "ours_is_faster_by": seconds[name]["median"] / seconds["ours"]["median"],
            "ours_takes_of_its_memory": peaks["ours"] / peaks[name] if peaks[name] else None,
        }
        for name in calls
    ]


def timed(call: Callable[[], object], begin: Callable[[], None]) -> float:
    """Seconds of one call."""
    begin()
    return timing.host_seconds(call)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the row."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    row = report.new_row("cpu_cross_entropy", "benchmarks/cpu_cross_entropy.py", arguments, CPU)
    row["settings"] = {name: getattr(options, name) for name in ("rows", "masked", "batch")}
    row["results"] = []
    cases = [(head, dtype) for head in options.head for dtype in options.dtype]
    with report.progress(total=len(cases) * len(programs(options)) * (1 + WARMUP + options.repeats)) as begin:
        for head, dtype in cases:
            row["results"] += measure(options, head, dtype, begin)
    report.print_table(
        f"weighted cross-entropy, forward and backward: {options.masked} masked of {options.rows} rows",
        COLUMNS,
        [cells(result) for result in row["results"]],
    )
    path = report.write_row(row, options.out, f"{options.masked}of{options.rows}")
    report.print_last_line({"row": str(path), "results": row["results"]})
    return 0


def cells(result: dict[str, object]) -> list[str]:
    """A line of the table."""
    peak, share = result["peak_bytes"], result["ours_takes_of_its_memory"]
    return [
        f"{result['head']} {result['dtype']}",
        str(result["program"]),
        f"{1000 * result['seconds']['median']:.0f}",
        f"{result['ours_is_faster_by']:.2f}x faster",
        "n/a" if peak is None else f"{peak / 1e6:.0f}",
        "n/a" if share is None else f"{share:.0%}",
    ]


if __name__ == "__main__":
    sys.exit(exit_code("cpu_cross_entropy", main))
