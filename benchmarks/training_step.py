"""Speed and memory of a training step: dllm's loss against losses on stored logits.

    python benchmarks/training_step.py --model minilm

A step is forward, loss, backward and AdamW (fused, transformers' default) on float32 weights; bfloat16 means autocast.
The programs (benchmarks/losses.py) share the model, its dropout masks and the batches, masked by a collator. Each
loss is checked against float64 before anything is timed. Runs are interleaved.

Peak memory is measured in a separate step, above weights and optimizer state; gradients count as far as they exist at
the peak. On a CPU it is measured in a separate process, in which the C library maps every tensor on its own and returns
it when it is freed (MALLOC_MMAP_THRESHOLD_), so that holes in its heap do not count. Output: a table and, as the last
line, one JSON object on stdout; a JSON row in the results folder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import nn

from benchmarks import losses, models, report
from benchmarks.failures import Result
from benchmarks.losses import PROGRAMS, Batch
from benchmarks.step import PARTS, Step, WrongLossError, check_losses, measure, measure_memory, still_running
from dllm.core.trainers.utils.throughput import Flops
from dllm.exits import exit_code
from dllm.tools.command import at_least_one

MAPPED = 2**16  # bytes from which a tensor has its own mapping, where memory is measured
BATCHES = 4  # different batches, used in turn
# on a CPU the backward of torch's fused attention is so slow (LOG.md) that it would hide the difference
ATTENTION_HELP = "attention of all programs (default: sdpa on a GPU, eager on a CPU)"
COLUMNS = (
    "program",
    "tokens/s",
    "ms/step (10-90 %)",
    "speed-up",
    "forward, loss",
    "backward",
    "optimizer",
    "peak MB",
    "of its memory",
)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; unknown and invalid options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", default="minilm", help=f"{', '.join(models.PRESETS)}, or a local folder")
    add("--batch", type=at_least_one, default=8)
    add("--length", type=at_least_one, default=256)
    add("--dtype", choices=["float32", "bfloat16"], default=None, help="default: bfloat16 on a GPU, float32 on a CPU")
    add("--attention", choices=["eager", "sdpa"], default=None, help=ATTENTION_HELP)
    add("--gradient-checkpointing", action="store_true", help="recompute the layers' activations in the backward")
    add("--no-dropout", action="store_true", help="set all dropout rates to 0")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--providers", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    add("--repeats", type=at_least_one, default=7)
    add("--budget", type=_seconds, default=None, metavar="SECONDS", help="start no round after this time")
    add("--threads", type=at_least_one, default=None, help="torch's threads on the CPU")
    add("--seed", type=int, default=0)
    add("--mask-id", type=int, default=None, help="mask token of a folder whose config has none")
    add("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")
    add("--only-memory", action="store_true", help="measure only peak memory, in this process, and print it as JSON")
    options = parser.parse_args(arguments)
    try:
        torch.empty(1, device=options.device)
        options.out.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        parser.error(f"--device {options.device} cannot be used: {str(error).splitlines()[0]}")
    except OSError as error:
        parser.error(f"{options.out} cannot be written to: {error.strerror}")
    gpu = options.device.startswith("cuda")
    options.dtype = options.dtype or ("bfloat16" if gpu else "float32")
    options.attention = options.attention or ("sdpa" if gpu else "eager")
    return options


def _seconds(text: str) -> float:
    if not (seconds := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return seconds


def load(options: argparse.Namespace) -> models.Loaded:
    """The model in training mode with float32 weights.

    Raises:
        ValueError: there is no such model, or the sequences are longer than its table of positions.
        NotEnoughMemoryError: the weights do not fit.
    """
    loaded = models.load(
        options.model,
        torch.float32,
        torch.device(options.device),
        seed=options.seed,
        mask_id=options.mask_id,
        attention=options.attention,
    )
    positions = getattr(loaded.model.config, "max_position_embeddings", options.length)
    if options.length > positions:
        raise ValueError(f"--length must be at most {positions} for {options.model}, got {options.length}")
    loaded.model.train().requires_grad_(True)
    if options.gradient_checkpointing:
        loaded.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if options.no_dropout:
        for module in loaded.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return loaded


def memory_elsewhere(arguments: list[str]) -> dict[str, Result]:
    """:func:`measure_memory` in a process that returns freed tensors to the system at once.

    Raises:
        RuntimeError: the process failed; the message ends with its output.
    """
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MAPPED), "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-m", "benchmarks.training_step", *arguments, "--only-memory"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"peak memory could not be measured: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the row; 1 for a wrong loss or where nothing was measured, 2 for invalid options."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    deadline = time.monotonic() + options.budget if options.budget else None
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        loaded = load(options)
    except (ValueError, OSError, models.NotEnoughMemoryError) as error:
        print(f"training_step: {error}", file=sys.stderr)
        return 2
    step = Step(loaded.model, torch.device(options.device), options.dtype, options.seed)
    batches = losses.make_batches(loaded, options.batch, options.length, BATCHES, options.seed)
    row = new_row(arguments, options, loaded, batches)
    names = list(dict.fromkeys(options.providers))
    if options.only_memory:
        print(json.dumps(measure_memory(step, batches[0], names)))
        return 0
    results: dict[str, Result] = {name: {} for name in names}
    with report.progress(total=2 + len(names) * (1 + options.repeats)) as begin:
        begin("losses against float64")
        try:
            row["losses"] = check_losses(step, names, batches[0], results)
        except WrongLossError as error:
            print(f"training_step: {error}", file=sys.stderr)
            return 1
        begin("memory")
        on_cpu = step.device.type == "cpu"
        peaks = memory_elsewhere(arguments) if on_cpu else measure_memory(step, batches[0], still_running(results))
        for name in still_running(results):
            results[name] |= peaks[name]
        measure(step, batches, options.repeats, results, begin, deadline)
    row["providers"] = results
    print_results(row)
    slug = f"{Path(options.model).name}-{options.dtype}-{step.device.type}-b{options.batch}-l{options.length}"
    path = report.write_row(row, options.out, slug)
    report.print_last_line({"row": str(path), "providers": results})
    return int(not still_running(results))


def new_row(
    arguments: list[str], options: argparse.Namespace, loaded: models.Loaded, batches: list[Batch]
) -> dict[str, object]:
    """The row's fields that are known before the measurement."""
    row = report.new_row("training_step", "benchmarks/training_step.py", arguments, torch.device(options.device))
    names = ("model", "batch", "length", "dtype", "attention", "gradient_checkpointing", "seed")
    settings = {name: getattr(options, name) for name in names}
    masked = statistics.mean(len(batch.rows) for batch in batches)
    return row | {
        "settings": settings | {"dropout": dropout(loaded.model), "optimizer": "AdamW, fused"},
        "parameters": loaded.parameters,
        "masked_share": masked / (options.batch * options.length),
        "flops": step_flops(loaded.model, options.batch, options.length, masked),
    }


def step_flops(model: nn.Module, batch: int, length: int, masked: float) -> dict[str, float]:
    """FLOPs of the matrix products of one step; `masked`: mean number of masked tokens in a batch."""
    flops = Flops(model)
    return {
        "body": flops.body * batch * length,
        "attention": flops.attention * batch * length**2,
        "head_of_all_rows": flops.head * batch * length,
        "head_of_masked_rows": flops.head * masked,
    }


def dropout(model: nn.Module) -> float:
    """The largest dropout rate of the model's layers; 0 without dropout."""
    return max((module.p for module in model.modules() if isinstance(module, nn.Dropout)), default=0.0)


def print_results(row: dict) -> None:
    """Print the table."""
    settings, results = row["settings"], row["providers"]
    report.print_table(
        f"training step: {settings['model']} {settings['dtype']}, batch {settings['batch']} x {settings['length']}, "
        f"{row['masked_share']:.0%} masked, {settings['attention']} attention, dropout {settings['dropout']:g}"
        + ", gradient checkpointing"
        * settings["gradient_checkpointing"],
        COLUMNS,
        [cells(name, result) for name, result in results.items()],
        [f"{name}: {result['error']}" for name, result in results.items() if "error" in result],
    )


def cells(name: str, result: Result) -> list[str]:
    """A program's line of the table; a dash where nothing was measured."""
    spread, split, peak = result.get("seconds"), result.get("split_seconds", {}), result.get("peak_bytes")

    def number(value: float | None, pattern: str) -> str:
        return "-" if value is None else pattern.format(value)

    return [
        name,
        number(result.get("tokens_per_second"), "{:.0f}"),
        "{:.1f} ({:.1f}-{:.1f})".format(*(1000 * spread[q] for q in ("median", "p10", "p90"))) if spread else "-",
        number(result.get("speedup"), f"{{:.2f}}x {result.get('against')}"),
        *(f"{1000 * split[part]:.1f}" if split else "-" for part in PARTS),
        number(peak and peak / 1e6, "{:.0f}"),
        number(result.get("share_of_memory"), "{:.0%}"),
    ]


if __name__ == "__main__":
    sys.exit(exit_code("training_step", main))
