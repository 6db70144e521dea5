"""What speed costs in right answers: the shipped model's gauge over tokens per step.

    python benchmarks/quality.py
    python benchmarks/quality.py --task problems --remasking low_confidence random --plot build/quality.png

Every task of `dllm.demo.gauge`, for more and more tokens per forward pass. A table goes to stdout, a JSON row to the
results folder, and the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the packages lie beside this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks import report
from benchmarks.models import DTYPES
from dllm.demo import gauge
from dllm.demo.shipped import SHIPPED, load

COLUMNS = (
    "asked",
    "remasking",
    "T",
    "tokens per step",
    "exact answers",
    "95 % interval",
    "tokens per forward",
    "seconds",
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", default=None, help="a folder or a name on the Hub (default: the shipped model)")
    add("--task", nargs="+", choices=list(gauge.TASKS), default=list(gauge.TASKS))
    add("--tokens-per-step", nargs="+", type=int, default=[1, 2, 4, 8])
    add("--remasking", nargs="+", choices=["low_confidence", "random"], default=["low_confidence"])
    add("--temperature", nargs="+", type=float, default=[0.0])
    add("--block-length", type=int, default=gauge.GEN_LENGTH)
    add("--questions", type=int, default=gauge.QUESTIONS, help="of each case (default: %(default)s)")
    add("--batch-size", type=int, default=gauge.BATCH_SIZE)
    add("--seed", type=int, default=0)
    add("--dtype", choices=list(DTYPES), default="float32")
    add("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--plot", type=Path, default=None, help="write accuracy against tokens per forward pass as PNG")
    add("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, begin: Callable[[str], None]) -> list[dict[str, object]]:
    """One result for each task, remasking, temperature and number of tokens per step."""
    model, tokenizer = load(options.model or SHIPPED, options.device, DTYPES[options.dtype])
    results = []
    for task, remasking, temperature, tokens_per_step in cases(options):
        case = {"task": task, "remasking": remasking, "temperature": temperature, "tokens_per_step": tokens_per_step}
        begin(", ".join(f"{name} {value}" for name, value in case.items()))
        score = gauge.measure(
            model,
            tokenizer,
            **case,
            questions=options.questions,
            block_length=options.block_length,
            batch_size=options.batch_size,
            seed=options.seed,
        )
        results.append(case | score.row())
    return results


def cases(options: argparse.Namespace) -> list[tuple[str, str, float, int]]:
    """What is measured, in order."""
    return [*itertools.product(options.task, options.remasking, options.temperature, options.tokens_per_step)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the row; 2 for options that make no sense."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    row = report.new_row("quality", "benchmarks/quality.py", arguments, options.device)
    row["settings"] = {
        "model": options.model or "shipped",
        "weights": digest(options.model or SHIPPED),
        "dtype": options.dtype,
        "gen_length": gauge.GEN_LENGTH,
        "block_length": options.block_length,
        "batch": options.batch_size,
        "seed": options.seed,
    }
    try:
        with report.progress(total=len(cases(options))) as begin:
            row["results"] = measure(options, begin)
    except (OSError, ValueError) as error:
        print(f"quality: {error}", file=sys.stderr)
        return 2
    report.print_table(
        f"exact answers of {options.questions}, model {row['settings']['model']}",
        COLUMNS,
        [cells(result) for result in row["results"]],
    )
    if options.plot:
        from benchmarks import plot

        print(f"plot: {plot.quality_row(row, options.plot).resolve()}")
    path = report.write_row(row, options.out, f"{Path(row['settings']['model']).name}-{options.device.type}")
    report.print_last_line({"row": str(path), "results": row["results"]})
    return 0


def digest(source: Path | str) -> str | None:
    """The beginning of the SHA-256 of a model's weights, None where they are no single local file."""
    file = Path(source) / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else None


def cells(result: dict[str, object]) -> list[str]:
    """A line of the table."""
    low, high = result["interval_95"]
    return [
        result["task"],
        result["remasking"],
        f"{result['temperature']:g}",
        str(result["tokens_per_step"]),
        f"{result['accuracy']:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{result['tokens_per_forward']:.2f}",
        f"{result['seconds']:.1f}",
    ]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
