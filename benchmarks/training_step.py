"""Speed and memory of a training step by `dllm` against a step on full logits, on the machine at hand.

    python benchmarks/training_step.py --model minilm

A step is forward, loss, backward and AdamW (fused, transformers' default), on weights in float32; bfloat16 means
autocast. Masks are drawn before, as a collator does. The programs, see benchmarks/losses.py, share the model, its
dropout masks and the batches; their losses are held against float64 before anything is timed, and they take turns. Peak
memory is that of a step of its own, above weights and optimizer state: gradients count as far as they are there at the
peak. On a CPU it is measured in a process of its own, in which the C library maps every tensor by itself and gives it
back once it is freed (MALLOC_MMAP_THRESHOLD_): holes in its heap do not count. A table goes to stdout, a JSON row to
the results folder, and the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the packages lie beside this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import Tensor, nn

from benchmarks import losses, models, report, timing
from benchmarks.losses import PROGRAMS, Batch, Program, Truth
from benchmarks.measure import Result, failures_in
from dllm.core.trainers.utils.throughput import Flops
from dllm.exits import exit_code

Begin = Callable[[str], None]  # says what begins, see report.progress
MAPPED = 2**16  # bytes from which on a tensor is a mapping of its own where memory is measured
BATCHES = 4  # different ones, in turn
LEARNING_RATE = 1e-4
# torch's fused attention is slow backward on a CPU (LOG.md); a step would be mostly that, and hide what is compared
ATTENTION_HELP = "of all programs; default: sdpa on a GPU, eager on a CPU"
PARTS = ("forward", "backward", "optimizer")  # the loss belongs to the forward
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
    """The command line; unknown options end the program, and so do those that make no sense here."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", default="minilm", help=f"{', '.join(models.PRESETS)}, or a local folder")
    add("--batch", type=_positive, default=8)
    add("--length", type=_positive, default=256)
    add("--dtype", choices=["float32", "bfloat16"], default=None, help="default: bfloat16 on a GPU, float32 on a CPU")
    add("--attention", choices=["eager", "sdpa"], default=None, help=ATTENTION_HELP)
    add("--gradient-checkpointing", action="store_true", help="keep no activations of the layers, compute them twice")
    add("--no-dropout", action="store_true", help="leave out the dropout that the model's config has")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--providers", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    add("--repeats", type=_positive, default=7)
    add("--budget", type=_seconds, default=None, metavar="SECONDS", help="start no further round after so long")
    add("--threads", type=_positive, default=None, help="threads that torch may use on the CPU")
    add("--seed", type=int, default=0)
    add("--mask-id", type=int, default=None, help="the mask token of a folder that does not name it")
    add("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")
    add(
        "--only-memory", action="store_true", help="measure peak memory alone, in this process; a JSON object on stdout"
    )
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


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _seconds(text: str) -> float:
    if not (seconds := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return seconds


def load(options: argparse.Namespace) -> models.Loaded:
    """The model in training mode, weights in float32.

    Raises:
        ValueError: no such model, or sequences longer than it has positions for.
        NotEnoughMemoryError: its weights do not fit.
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


class Step:
    """A training step of one model by any of the programs. All of them draw the same dropout masks."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: str, seed: int):
        self.model, self.device, self.seed = model, device, seed
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
        half = dtype == "bfloat16"
        self.autocast = functools.partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=half)

    def loss(self, program: Program, batch: Batch) -> Tensor:
        """The forward pass and the loss, on a model prepared for the program."""
        torch.manual_seed(self.seed)
        with self.autocast():
            return program.loss(self.model, batch)

    def true_loss(self, batch: Batch) -> Truth:
        """What every program's loss is held against."""
        torch.manual_seed(self.seed)
        with self.autocast():
            return losses.true_loss(self.model, batch)

    def __call__(self, program: Program, batch: Batch) -> dict[str, float]:
        """Seconds of a whole step and of its parts, without preparing the model. Gradients are freed at its end."""
        with program.prepared(self.model):
            return self._timed(program, batch)

    def _timed(self, program: Program, batch: Batch) -> dict[str, float]:
        self.optimizer.zero_grad(set_to_none=True)  # those of a step that failed
        timing.synchronize(self.device)
        watch, start = timing.Stopwatch(self.device), time.perf_counter()
        loss = self.loss(program, batch)
        watch.mark("forward")
        loss.backward()
        watch.mark("backward")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        watch.mark("optimizer")
        timing.synchronize(self.device)
        return {"whole": time.perf_counter() - start} | watch.seconds()


class WrongLossError(ValueError):
    """A program computes another loss than the others: its speed means nothing."""


def check_losses(step: Step, names: list[str], batch: Batch, results: dict[str, Result]) -> dict[str, object]:
    """The loss of every program on one batch, and the truth; a program that fails says why in its result.

    Raises:
        WrongLossError: a loss is farther from the truth than it may be.
    """
    truth, found = step.true_loss(batch), {}
    for name in names:
        with failures_in(results, name):
            with PROGRAMS[name].prepared(step.model):
                found[name] = step.loss(PROGRAMS[name], batch).item()
    for name, loss in found.items():
        if not abs(loss - truth.loss) <= truth.tolerance:
            raise WrongLossError(
                f"{name} must give the loss {truth.loss:.9g} up to {truth.tolerance:.2g}, got {loss:.9g}: not timed"
            )
    return truth._asdict() | {"programs": found}


def measure(
    step: Step,
    batches: list[Batch],
    repeats: int,
    results: dict[str, Result],
    begin: Begin,
    deadline: float | None = None,
) -> None:
    """Fill in the results of all programs that have not failed; they take turns. No round after the first starts later
    than `deadline`, a value of ``time.monotonic()``."""
    for name in still_running(results):
        with failures_in(results, name):
            begin(f"{name}: warm-up")
            step(PROGRAMS[name], batches[0])  # brings the optimizer's state, too
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in results}

    def once(name: str, given: itertools.cycle[Batch]) -> None:
        begin(name)
        with failures_in(results, name):
            taken[name].append(step(PROGRAMS[name], next(given)))

    calls = {name: functools.partial(once, name, itertools.cycle(batches)) for name in still_running(results)}
    timing.interleave(calls, repeats, deadline)
    for name in still_running(results):
        results[name] |= rates(taken[name], batches[0].clean.numel())
    for name, result in results.items():
        compare(result, PROGRAMS[name].against, results)


def measure_memory(step: Step, batch: Batch, names: list[str]) -> dict[str, Result]:
    """Peak memory of a step of every program that does not fail."""
    peaks: dict[str, Result] = {name: {} for name in names}
    for name in names:
        with failures_in(peaks, name):
            step(PROGRAMS[name], batch)
            with timing.PeakMemory(step.device) as memory:
                step(PROGRAMS[name], batch)
            peaks[name] = {"peak_bytes": memory.bytes, "peak_how": memory.how}
    return peaks


def memory_elsewhere(arguments: list[str]) -> dict[str, Result]:
    """:func:`measure_memory` in a process in which freed tensors go back to the system at once.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MAPPED), "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-m", "benchmarks.training_step", *arguments, "--only-memory"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"peak memory could not be measured: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def still_running(results: dict[str, Result]) -> list[str]:
    """The programs that have not failed."""
    return [name for name, result in results.items() if "error" not in result]


def rates(steps: list[dict[str, float]], tokens: int) -> Result:
    """Speed and parts of a program's counted steps, each of so many tokens."""
    spread = timing.summary([step["whole"] for step in steps])
    return {
        "seconds": spread,
        "split_seconds": {part: statistics.median(step[part] for step in steps) for part in PARTS},
        "tokens_per_second": tokens / spread["median"],
    }


def compare(result: Result, against: str | None, results: dict[str, Result]) -> None:
    """Add speed-up and share of memory to the result of a program that is to replace another one measured here."""
    other = results.get(against, {})
    if "tokens_per_second" in result and "tokens_per_second" in other:
        result["against"] = against
        result["speedup"] = result["tokens_per_second"] / other["tokens_per_second"]
        result["share_of_memory"] = result["peak_bytes"] / other["peak_bytes"] if other["peak_bytes"] else None


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the row; 1 where losses disagree or nothing could be measured, 2 for bad options."""
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
    """What is known of a measurement before it."""
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
    """Floating-point operations of the products of one step, with `masked` tokens in a batch on average."""
    flops = Flops(model)
    return {
        "body": flops.body * batch * length,
        "attention": flops.attention * batch * length**2,
        "head_of_all_rows": flops.head * batch * length,
        "head_of_masked_rows": flops.head * masked,
    }


def dropout(model: nn.Module) -> float:
    """The largest rate of the model's dropout layers; 0 without any."""
    return max((module.p for module in model.modules() if isinstance(module, nn.Dropout)), default=0.0)


def print_results(row: dict) -> None:
    """The table for people."""
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
