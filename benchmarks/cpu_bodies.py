"""A model's body on a CPU by several programs, against the floor of its linear layers; alone and inside sampling loops.

    python benchmarks/cpu_bodies.py --model minilm --dtype float32
    python benchmarks/cpu_bodies.py --model minilm --bodies eager --loop-steps 0 --shapes 1x64 1x192 1x512 4x192 16x192

The body gives the LM head's input [B, L, H] for tokens [B, L]. Programs: transformers' own class, eager and under
torch.compile, and those of ONNX Runtime and OpenVINO where they are installed. The floor is the time of the body's own
linear layers alone, replayed at their shapes by F.linear, and beside it by oneDNN with packed weights. Before anything
is timed, every body's error against float64 is compared with that of eager PyTorch in the same precision: one that errs
more than twice as much is not timed. int8 is approximate, so its error is only reported.

Each body also takes part in the model card's loop and in that of dllm, with the same LM head, for --loop-steps steps of
the last block of the canvas. Loops with a body of their own run beside: card-compile is the whole class under
torch.compile in the card's loop. Tokens/s are those of a run with one token per step and row.

All timings of a shape are interleaved, with a rest of 0.1 s between two. Memory is the growth of resident memory: by
loading a body beside the model, and the peak of one run. Output: a table and, as the last line, one JSON object on
stdout; a JSON row in the results folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

# No processes of Inductor's beside the first shapes that are timed.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import torch

from benchmarks import bodies, body_case, models, report
from benchmarks.body_case import LOOPS, OWN_LOOPS, BodyCase
from benchmarks.failures import Result
from dllm.exits import exit_code
from dllm.fast.model import check_positions

CPU = torch.device("cpu")
COLUMNS = ("body", "ms (10-90 %)", "floor/body", "error", "of eager's", "loaded MB", "peak MB", "prepared s")
LOOP_COLUMNS = ("loop", "body", "ms/step (10-90 %)", "tokens/s", "of card, eager", "same tokens", "peak MB")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", default="minilm", help=f"{', '.join(models.PRESETS)}, or a local folder")
    add("--dtype", choices=["float32", "bfloat16"], default="float32")
    add("--shapes", nargs="+", type=_shape, default=[(1, 192)], metavar="BxL", help="batch x canvas length")
    add("--bodies", nargs="+", choices=list(bodies.PROGRAMS), default=list(bodies.PROGRAMS))
    add("--loops", nargs="+", choices=[*LOOPS, *OWN_LOOPS], default=list(LOOPS))
    add("--loop-steps", type=int, default=8, help="0: time bodies alone")
    add("--temperature", type=float, default=0.0)
    add("--repeats", type=int, default=9)
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=None)
    add("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")
    add("--plot", type=Path, default=None, metavar="FILE.png", help="time against canvas length and batch as a plot")
    options = parser.parse_args(arguments)
    for name, least in (("repeats", 1), ("threads", 1), ("loop_steps", 0)):
        if getattr(options, name) is not None and getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}")
    if options.plot and len(options.shapes) < 3:
        parser.error(f"--plot draws a line through at least 3 shapes, got {len(options.shapes)}")
    if any(length < 2 for _, length in options.shapes):
        parser.error("a canvas must have at least 2 tokens, one of them a prompt")
    return options


def _shape(text: str) -> tuple[int, int]:
    """Batch and canvas length of "BxL"."""
    batch, x, length = text.partition("x")
    if not (x and batch.isdecimal() and length.isdecimal() and int(batch) and int(length)):
        raise argparse.ArgumentTypeError(f"a shape must be batch x length, as in 8x192, got {text!r}")
    return int(batch), int(length)


def main(arguments: list[str] | None = None, load: Callable[..., models.Loaded] = models.load) -> int:
    """Measure every shape, print, and write the row; 2 for a model that cannot be loaded or has too few positions."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        loaded = load(options.model, models.DTYPES[options.dtype], CPU, seed=options.seed)
        check_positions(loaded.model, max(length for _, length in options.shapes), "a canvas must fit")
    except (ValueError, OSError, models.NotEnoughMemoryError) as error:
        print(f"cpu_bodies: {error}", file=sys.stderr)
        return 2
    row = report.new_row("cpu_bodies", "benchmarks/cpu_bodies.py", arguments, CPU)
    row["settings"] = {
        "model": options.model,
        "dtype": options.dtype,
        "temperature": options.temperature,
        "loop_steps": options.loop_steps,
    }
    row["load_average"] = os.getloadavg()[0]  # of the last minute; the measurement itself is a part of later ones
    row["parameters"] = loaded.parameters
    with report.progress(total=parts(options)) as begin:
        row["results"] = [measured(loaded, options, shape, begin) for shape in options.shapes]
    for result in row["results"]:
        print_result(options, result)
    path = report.write_row(row, options.out, f"{Path(options.model).name}-{options.dtype}")
    if options.plot:
        from benchmarks import plot

        plot.body_growth([row], options.plot)
    report.print_last_line({"row": str(path), "results": row["results"]})
    return 0


def parts(options: argparse.Namespace) -> int:
    """Parts of the progress bar."""
    loops = len(options.loops) * len(options.bodies) if options.loop_steps else 0
    return len(options.shapes) * (len(options.bodies) + loops + options.repeats * (2 + len(options.bodies) + loops))


def measured(
    loaded: models.Loaded, options: argparse.Namespace, shape: tuple[int, int], begin: Callable[[str], None]
) -> Result:
    """The result of one shape."""
    torch._dynamo.reset()  # else the second shape would be compiled with dynamic sizes
    steps = options.loop_steps or None
    run = body_case.run_of(options.model, options.dtype, shape, steps, options.temperature, options.seed)
    loops = options.loops if options.loop_steps else ()
    return BodyCase(loaded, run, options.bodies, loops, begin).measure(options.repeats)


def print_result(options: argparse.Namespace, result: Result) -> None:
    """Print the tables of one shape."""
    floor = result["floor"]
    milliseconds = 1000 * floor["seconds"]["median"]
    speed = floor["flops"] / floor["seconds"]["median"] / 1e9
    packed = floor["packed_seconds"]
    beside = f", with packed weights {1000 * packed['median']:.2f} ms" if packed else ""
    title = f"{Path(options.model).name} {options.dtype}, batch {result['batch']}, canvas {result['length']}"
    notes = [
        f"{name}: {each['error']}" for name, each in (result["bodies"] | result["loops"]).items() if "error" in each
    ]
    report.print_table(
        f"{title}: floor of the products {milliseconds:.2f} ms, {speed:.0f} GFLOP/s{beside}",
        COLUMNS,
        [body_cells(name, each) for name, each in result["bodies"].items()],
        notes,
    )
    if result["loops"]:
        lines = [loop_cells(name, each) for name, each in result["loops"].items()]
        report.print_table(f"{title}: sampling, temperature {options.temperature:g}", LOOP_COLUMNS, lines)


def body_cells(name: str, result: Result) -> list[str]:
    """A body's line of the table; a dash where nothing was measured."""
    return [
        name,
        _spread(result.get("seconds")),
        _number(result.get("share_of_floor"), "{:.0%}"),
        _number(result.get("relative_error"), "{:.2g}"),
        _number(result.get("times_eager_error"), "{:.2f}x"),
        *(_megabytes(result.get(key)) for key in ("loaded_bytes", "peak_bytes")),
        _number(result.get("prepare_seconds"), "{:.1f}"),
    ]


def loop_cells(name: str, result: Result) -> list[str]:
    """A loop's line of the table."""
    return [
        *name.split(": "),
        _spread(result.get("seconds_per_step")),
        _number(result.get("tokens_per_second"), "{:.1f}"),
        _number(result.get("speedup"), "{:.2f}x"),
        _number(result.get("same_tokens"), "{:.1%}"),
        _megabytes(result.get("peak_bytes")),
    ]


def _spread(seconds: Result | None) -> str:
    if seconds is None:
        return "-"
    return "{:.2f} ({:.2f}-{:.2f})".format(*(1000 * seconds[q] for q in ("median", "p10", "p90")))


def _number(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


def _megabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.0f}"


if __name__ == "__main__":
    sys.exit(exit_code("cpu_bodies", main))
