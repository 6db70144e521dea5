"""Accuracy against tokens per step: exact answers of the shipped model, for samplers and their settings.

    python benchmarks/quality.py
    python benchmarks/quality.py --task problems --sampler generate threshold factor --plot build/quality.png

It measures the tasks of `dllm.demo.training.gauge` for several numbers of tokens per step, or several values of a
sampler's rule (threshold, factor, gamma). Forward passes are counted per question, as if each had been asked alone.
Output: a table and, as the last line, one JSON object on stdout; a JSON row in the results folder.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks import report
from benchmarks.models import DTYPES
from benchmarks.sampling_tables import sampler_in_words
from dllm.demo import samplers
from dllm.demo.shipped import SHIPPED, load
from dllm.demo.training import gauge
from dllm.exits import exit_code
from dllm.tools.command import at_least_one

COLUMNS = (
    "asked",
    "sampler",
    "T",
    "quantised",
    "compiled",
    "tokens per step",
    "exact answers",
    "95 % interval",
    "of one a step",
    "forwards",
    "tokens per forward",
    "seconds",
)
RULES = {
    "threshold": [0.99, 0.95, 0.9, 0.8, 0.7, 0.5],
    "factor": [0.25, 0.5, 1.0, 2.0],
    "gamma": [0.001, 0.01, 0.1],
}
COMPILED = {"no": False, "yes": True}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", default=None, help="a folder or a name on the Hub (default: the shipped model)")
    add("--task", nargs="+", choices=list(gauge.TASKS), default=list(gauge.TASKS))
    add("--sampler", nargs="+", choices=samplers.NAMES, default=["generate"])
    add(
        "--tokens-per-step",
        nargs="+",
        type=at_least_one,
        default=None,
        help="for samplers that count (default: 1 2 4 8)",
    )
    for rule, values in RULES.items():
        add(f"--{rule}", nargs="+", type=float, default=None, help=f"default: {' '.join(map(str, values))}")
    add(
        "--remasking",
        nargs="+",
        choices=["low_confidence", "random"],
        default=None,
        help="of generate, mdlm, bd3lm, llada",
    )
    add("--temperature", nargs="+", type=float, default=[0.0])
    add("--block-length", type=at_least_one, default=gauge.GEN_LENGTH)
    add("--questions", type=at_least_one, default=gauge.QUESTIONS, help="questions per case (default: %(default)s)")
    add("--batch-size", type=at_least_one, default=gauge.BATCH_SIZE)
    add("--seed", type=int, default=0)
    add("--dtype", choices=list(DTYPES), default="float32")
    add(
        "--quantize", nargs="+", choices=["none", "int8"], default=["none"], help="int8: weights of 8 bits, approximate"
    )
    add(
        "--compile-body",
        nargs="+",
        choices=list(COMPILED),
        default=["no"],
        help="the model's body through torch.compile, whose time is left out",
    )
    add("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--plot", type=Path, default=None, help="write accuracy against forward passes as a plot")
    add("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")
    options = parser.parse_args(arguments)
    for name in ("tokens_per_step", "remasking", *RULES):
        if getattr(options, name) is not None and not any(
            name in axes(sampler, options) for sampler in options.sampler
        ):
            parser.error(f"--{name.replace('_', '-')} is no option of {', '.join(options.sampler)}")
    return options


def axes(sampler: str, options: argparse.Namespace) -> dict[str, list[object]]:
    """The values to measure of each option of a sampler, by option."""
    given, own = vars(options), samplers.options_of(sampler)
    found = {"remasking": given["remasking"] or ["low_confidence"]} if "remasking" in own else {}
    found["temperature"] = options.temperature
    rules = {rule: given[rule] or values for rule, values in RULES.items() if rule in own}
    return found | (rules or {"tokens_per_step": given["tokens_per_step"] or [1, 2, 4, 8]})


def cases(options: argparse.Namespace) -> list[dict[str, object]]:
    """The cases to measure, in order: arguments of `gauge.measure`, and how the model is quantised."""
    ways = {"quantize": options.quantize, "compile_body": [COMPILED[word] for word in options.compile_body]}
    found = []
    for task, sampler in itertools.product(options.task, options.sampler):
        values = axes(sampler, options) | ways
        for chosen in itertools.product(*values.values()):
            found.append({"task": task, "sampler": sampler} | dict(zip(values, chosen, strict=True)))
    return found


def measure(options: argparse.Namespace, begin: Callable[[str], None]) -> list[dict[str, object]]:
    """The result of each case."""
    where = options.model or SHIPPED, options.device, DTYPES[options.dtype]
    loaded = {kind: load(*where, None if kind == "none" else kind) for kind in options.quantize}
    results = []
    for case in cases(options):
        begin(", ".join(f"{name} {value}" for name, value in case.items()))
        score = gauge.measure(
            *loaded[case["quantize"]],
            **{name: value for name, value in case.items() if name != "quantize"},
            questions=options.questions,
            block_length=options.block_length,
            batch_size=options.batch_size,
            seed=options.seed,
        )
        model = loaded[case["quantize"]][0]
        of_model = {"model_bytes": sum(t.nbytes for t in (*model.parameters(), *model.buffers()))}
        approximate = case["quantize"] != "none" or samplers.is_approximate(case["sampler"])
        results.append(case | {"approximate": approximate} | of_model | score.row())
    for result in results:
        if (exact := one_a_step(result, results)) and exact["correct"]:
            result["share_of_one_a_step"] = round(result["correct"] / exact["correct"], 4)
    return results


def one_a_step(result: dict[str, object], results: Sequence[dict[str, object]]) -> dict[str, object] | None:
    """The result with one token per step by highest confidence for the same task and temperature, where measured."""
    same = {"tokens_per_step": 1, "remasking": "low_confidence", "task": result["task"]}
    same |= {"temperature": result["temperature"], "approximate": False, "compile_body": False}
    return next((other for other in results if same.items() <= other.items()), None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the row; 2 for invalid options."""
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
    """The first 16 digits of the SHA-256 of a model's weights; None where they are not one local file."""
    file = Path(source) / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else None


def cells(result: dict[str, object]) -> list[str]:
    """A line of the table."""
    low, high = result["interval_95"]
    share = result.get("share_of_one_a_step")
    order = ", random order" * (result.get("remasking") == "random")
    return [
        result["task"],
        sampler_in_words(result["sampler"], result, result["approximate"]) + order,
        f"{result['temperature']:g}",
        result["quantize"],
        "yes" if result["compile_body"] else "no",
        str(result.get("tokens_per_step", "-")),
        f"{result['accuracy']:.1%}",
        f"{low:.1%} to {high:.1%}",
        "-" if share is None else f"{share:.1%}",
        f"{result['forwards']:.1f}",
        f"{result['tokens_per_forward']:.2f}",
        f"{result['seconds']:.1f}",
    ]


if __name__ == "__main__":
    sys.exit(exit_code("quality", main))
