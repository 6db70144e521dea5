"""Speed and memory of a training step by `dllm` against a step on full logits, on the machine at hand.

    python benchmarks/training_step.py --model minilm

A step is forward, loss, backward and AdamW (fused, transformers' default), on weights in float32; bfloat16 means
autocast. Masks are drawn before, as a collator does. The programs, see benchmarks/losses.py, share the model, its
dropout masks and the batches; their losses are held against float64 before anything is timed, and they take turns. Peak
memory is that of a step of its own, above weights and optimizer state: gradients count as far as they are there at the
peak. A table goes to stdout, a JSON row to the results folder, and the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the packages lie beside this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import Tensor, nn

from benchmarks import losses, models, report, timing
from benchmarks.losses import PROGRAMS, Batch, Truth
from benchmarks.measure import failures_in
from dllm.core.trainers.utils.throughput import Flops

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
    add("--model", default="minilm", help="minilm, modernbert-base, modernbert-large, ..., or a local folder")
    add("--batch", type=_positive, default=8)
    add("--length", type=_positive, default=256)
    add("--dtype", choices=["float32", "bfloat16"], default=None, help="default: bfloat16 on a GPU, float32 on a CPU")
    add("--attention", choices=["eager", "sdpa"], default=None, help=ATTENTION_HELP)
    add("--no-dropout", action="store_true", help="leave out the dropout that the model's config has")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--providers", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    add("--repeats", type=_positive, default=7)
    add("--threads", type=_positive, default=None, help="threads that torch may use on the CPU")
    add("--seed", type=int, default=0)
    add("--mask-id", type=int, default=None, help="the mask token of a folder that does not name it")
    add("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")
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


def load(options: argparse.Namespace) -> models.Loaded:
    """The model in training mode, weights in float32.

    Raises:
        ValueError: no such model, or sequences longer than it has positions for.
        NotEnoughMemoryError: its weights, gradients and optimizer state do not fit.
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

    def loss(self, program: Callable[[nn.Module, Batch], Tensor], batch: Batch) -> Tensor:
        """The forward pass and the loss."""
        torch.manual_seed(self.seed)
        with self.autocast():
            return program(self.model, batch)

    def true_loss(self, batch: Batch) -> Truth:
        """What every program's loss is held against."""
        torch.manual_seed(self.seed)
        with self.autocast():
            return losses.true_loss(self.model, batch)

    def __call__(self, program: Callable[[nn.Module, Batch], Tensor], batch: Batch) -> dict[str, float]:
        """Seconds of a whole step and of its parts. Gradients are freed at its end."""
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


def check_losses(step: Step, names: list[str], batch: Batch) -> dict[str, object]:
    """The loss of every program on one batch, and the truth.

    Raises:
        ValueError: one is farther from the truth than it may be.
    """
    truth = step.true_loss(batch)
    found = {name: step.loss(PROGRAMS[name].loss, batch).item() for name in names}
    for name, loss in found.items():
        if not abs(loss - truth.loss) <= truth.tolerance:
            raise ValueError(
                f"{name} must give the loss {truth.loss:.9g} up to {truth.tolerance:.2g}, got {loss:.9g}: not timed"
            )
    return truth._asdict() | {"programs": found}


def measure(
    step: Step, names: list[str], batches: list[Batch], repeats: int, begin: Callable[[str], None]
) -> dict[str, dict[str, object]]:
    """For each program its numbers, or {"error": why}; the programs take turns."""
    results: dict[str, dict[str, object]] = {name: {} for name in names}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for name in names:
        with failures_in(results, name):
            begin(f"{name}: warm-up")
            step(PROGRAMS[name].loss, batches[0])  # brings the optimizer's state, too
            begin(f"{name}: memory")
            with timing.PeakMemory(step.device) as memory:
                step(PROGRAMS[name].loss, batches[0])
            results[name] |= {"peak_bytes": memory.bytes, "peak_how": memory.how}

    def once(name: str, given: itertools.cycle[Batch]) -> None:
        begin(name)
        with failures_in(results, name):
            taken[name].append(step(PROGRAMS[name].loss, next(given)))

    calls = {n: functools.partial(once, n, itertools.cycle(batches)) for n in names if "error" not in results[n]}
    timing.interleave(calls, repeats)
    for name, steps in taken.items():
        if steps:
            results[name] |= rates(steps, batches[0].clean.numel())
    for name, result in results.items():
        compare(result, PROGRAMS[name].against, results)
    return results


def rates(steps: list[dict[str, float]], tokens: int) -> dict[str, object]:
    """Speed and parts of a program's counted steps, each of so many tokens."""
    spread = timing.summary([step["whole"] for step in steps])
    return {
        "seconds": spread,
        "split_seconds": {part: statistics.median(step[part] for step in steps) for part in PARTS},
        "tokens_per_second": tokens / spread["median"],
    }


def compare(result: dict[str, object], against: str | None, results: dict[str, dict[str, object]]) -> None:
    """Add speed-up and share of memory to the result of a program that is to replace another one measured here."""
    other = results.get(against, {})
    if "tokens_per_second" in result and "tokens_per_second" in other:
        result["against"] = against
        result["speedup"] = result["tokens_per_second"] / other["tokens_per_second"]
        result["share_of_memory"] = result["peak_bytes"] / other["peak_bytes"] if other["peak_bytes"] else None


def step_flops(model: nn.Module, batch: int, length: int, masked: float) -> dict[str, float]:
    """Floating-point operations of the products of one step, with `masked` tokens in a batch on average."""
    flops = Flops(model)
    return {
        "body": flops.body * batch * length,
        "attention": flops.attention * batch * length**2,
        "head_of_all_rows": flops.head * batch * length,
        "head_of_masked_rows": flops.head * masked,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the row; 1 where losses disagree or nothing could be measured, 2 for bad options."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        loaded = load(options)
    except (ValueError, OSError, models.NotEnoughMemoryError) as error:
        print(f"training_step: {error}", file=sys.stderr)
        return 2
    device, model = torch.device(options.device), loaded.model
    batches = losses.make_batches(loaded, options.batch, options.length, BATCHES, options.seed)
    masked = statistics.mean(len(batch.rows) for batch in batches)
    names = list(dict.fromkeys(options.providers))
    row = report.new_row("training_step", "benchmarks/training_step.py", arguments, device)
    row["settings"] = {key: getattr(options, key) for key in ("model", "batch", "length", "dtype", "attention", "seed")}
    row["settings"] |= {"dropout": dropout(model), "optimizer": "AdamW, fused"}
    row["parameters"], row["masked_share"] = loaded.parameters, masked / (options.batch * options.length)
    row["flops"] = step_flops(model, options.batch, options.length, masked)
    step = Step(model, device, options.dtype, options.seed)
    with report.progress(total=1 + len(names) * (2 + options.repeats)) as begin:
        begin("losses against float64")
        try:
            row["losses"] = check_losses(step, names, batches[0])
        except ValueError as error:
            print(f"training_step: {error}", file=sys.stderr)
            return 1
        row["providers"] = measure(step, names, batches, options.repeats, begin)
    print_results(row)
    slug = f"{Path(options.model).name}-{options.dtype}-{device.type}-b{options.batch}-l{options.length}"
    path = report.write_row(row, options.out, slug)
    report.print_last_line({"row": str(path), "providers": row["providers"]})
    return int(all("seconds" not in result for result in row["providers"].values()))


def dropout(model: nn.Module) -> float:
    """The largest rate of the model's dropout layers; 0 without any."""
    return max((module.p for module in model.modules() if isinstance(module, nn.Dropout)), default=0.0)


def print_results(row: dict) -> None:
    """The table for people."""
    settings, results = row["settings"], row["providers"]
    report.print_table(
        f"training step: {settings['model']} {settings['dtype']}, batch {settings['batch']} x {settings['length']}, "
        f"{row['masked_share']:.0%} masked, {settings['attention']} attention, dropout {settings['dropout']:g}",
        COLUMNS,
        [cells(name, result) for name, result in results.items()],
        [f"{name}: {result['error']}" for name, result in results.items() if "error" in result],
    )


def cells(name: str, result: dict) -> list[str]:
    """A program's line of the table; a dash where nothing was measured."""
    spread, split, peak = result.get("seconds"), result.get("split_seconds", {}), result.get("peak_bytes")

    def number(value: float | None, pattern: str) -> str:
        return "-" if value is None else pattern.format(value)

    return [
        name,
        number(result.get("tokens_per_second"), "{:.0f}"),
        "{:.0f} ({:.0f}-{:.0f})".format(*(1000 * spread[q] for q in ("median", "p10", "p90"))) if spread else "-",
        number(result.get("speedup"), f"{{:.2f}}x {result.get('against')}"),
        *(number(1000 * split[part], "{:.0f}") if split else "-" for part in PARTS),
        number(peak and peak / 1e6, "{:.0f}"),
        number(result.get("share_of_memory"), "{:.0%}"),
    ]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
