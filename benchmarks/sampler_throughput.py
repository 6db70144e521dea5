"""Sampling speed: `dllm.fast.generate` against the model card's loop, other samplers against their authors' loops.

    python benchmarks/sampler_throughput.py --model modernbert-base --dtype bfloat16 --temperature 0 1
    python benchmarks/sampler_throughput.py --model dllm/demo/model --sampler mdlm threshold --threshold 0.9

Every program completes the same prompt with the same settings. Runs are interleaved. The first run of each program
(loading, compiling, capturing) is reported separately and not counted. Further runs are split into the time of the
transformer's body, of head and sampling, and of the transfer of tokens; their peak memory is measured.

With --measured-steps, single steps are timed instead of whole runs: see `benchmarks.measured_steps`.

Output: a table and, as the last line, one JSON object on stdout; a JSON row for each case in the results folder. A
program that fails has the reason in its row. One step is one forward pass. Samplers that may give other tokens than one
token per step are marked approximate; how many tokens they commit per step depends on the weights, and random weights
give low probabilities, so one.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks import machine, measured_steps, models, providers, report
from benchmarks.loops import COMPARED
from benchmarks.measure import measure
from benchmarks.providers import Case
from dllm.demo import samplers
from dllm.exits import exit_code

COLUMNS = (
    "provider",
    "tokens/s",
    "useful/s",
    "forwards",
    "tokens/forward",
    "ms/step (10-90 %)",
    "speed-up",
    "body",
    "head+sampling",
    "transfer",
    "peak MB",
    "first run s",
    "same tokens",
)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", nargs="+", default=["modernbert-base"], help=f"{', '.join(models.PRESETS)}, or a local folder")
    add(
        "--sampler",
        nargs="+",
        choices=COMPARED,
        default=["generate"],
        help="generate: the model card's loop",
    )
    add("--batch", nargs="+", type=int, default=[1])
    add("--prompt-length", type=int, default=64)
    add("--gen-length", type=int, default=128)
    add("--block-length", type=int, default=64)
    add("--steps", type=int, default=None, help="of samplers with a number of steps (default: 128)")
    add("--temperature", nargs="+", type=float, default=[0.0])
    add("--remasking", choices=["low_confidence", "random"], default=None, help="of generate, mdlm and llada")
    add("--threshold", type=float, default=None, help="of threshold and llada2")
    add("--factor", type=float, default=None)
    add("--gamma", type=float, default=None, help="of entropy-bound")
    add("--alg-temp", type=float, default=None, help="of all dream samplers except dream-origin")
    add("--top-p", type=float, default=None, help="of dream samplers")
    add("--top-k", type=int, default=None, help="of dream samplers")
    add("--cfg-scale", type=float, default=0.0)
    add("--dtype", choices=list(models.DTYPES), default=None, help="default: bfloat16 on a GPU, float32 on a CPU")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--providers", nargs="+", choices=providers.NAMES, default=None, help="programs to compare")
    add("--repeats", type=int, default=5)
    add("--measured-steps", type=int, default=None, metavar="N", help="time N steps of a run, each by part, not all")
    add("--seed", type=int, default=0)
    add("--mask-id", type=int, default=None, help="mask token of a folder whose config has none")
    add(
        "--check-noise",
        action="store_true",
        help="compare tokens above temperature 0, too: the authors' loop runs once more on dllm's noise (slow)",
    )
    add("--out", type=Path, default=report.RESULTS, help="folder for the JSON rows")
    add("--plot", type=Path, default=None, metavar="FILE.png", help="write time per step as a plot")
    add("--budget", type=float, default=None, metavar="SECONDS", help="start no round or case after this time")
    add("--threads", type=int, default=None, help="torch's threads on the CPU")
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("bfloat16" if options.device.startswith("cuda") else "float32")
    check(parser, options)
    return options


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program with a message where an option is invalid."""
    for name in ("steps", *samplers.OPTIONS):
        if getattr(options, name) is not None and not any(takes(sampler, name) for sampler in options.sampler):
            parser.error(f"--{name.replace('_', '-')} is no option of {', '.join(options.sampler)}")
    told_apart = ("card", "full-canvas", "ours-eager", "ours-int8")
    if options.measured_steps and not {*(options.providers or [])} <= {*told_apart}:
        parser.error(f"--measured-steps is for the providers {', '.join(told_apart)}, whose steps can be told apart")
    for name in ("repeats", "threads", "budget", "measured_steps"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, got {value:g}")
    try:
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        parser.error(f"--device {options.device} cannot be used: {str(error).splitlines()[0]}")
    for folder in (options.out, options.plot and options.plot.parent):
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"{folder} cannot be written to: {error.strerror}")


def takes(sampler: str, option: str) -> bool:
    """Whether a sampler has an option."""
    return samplers.steps_of(sampler) is not None if option == "steps" else option in samplers.options_of(sampler)


def cases_of(options: argparse.Namespace) -> list[Case]:
    """Every combination of model, sampler, batch and temperature; a sampler gets the options that it has."""
    shared = ("prompt_length", "gen_length", "cfg_scale", "seed", "dtype", "device", "measured_steps")
    settings = {name: getattr(options, name) for name in shared}
    combinations = itertools.product(options.model, options.sampler, options.batch, options.temperature)
    return [Case(model=m, batch=b, temperature=t, **settings, **settings_of(s, options)) for m, s, b, t in combinations]


def settings_of(sampler: str, options: argparse.Namespace) -> dict[str, object]:
    """The fields of a case that depend on its sampler."""
    given = {name: getattr(options, name) for name in samplers.OPTIONS if getattr(options, name) is not None}
    own = samplers.options_of(sampler, **{name: value for name, value in given.items() if takes(sampler, name)})
    return {
        "sampler": sampler,
        "block_length": options.gen_length if sampler.startswith("dream-") else options.block_length,
        "steps": (options.steps or 128) if takes(sampler, "steps") else None,
        "remasking": own.pop("remasking", None),
        "options": own,
    }


def print_case(case: Case, results: dict[str, dict[str, object]]) -> None:
    """Print the table of one case."""
    notes = [
        f"{name}: {r.get('error') or r.get('note')}" for name, r in results.items() if r.get("error") or r.get("note")
    ]
    why_not = {r["same_tokens_why_not"] for r in results.values() if "same_tokens_why_not" in r}
    notes += [f"same tokens n/a: {why}" for why in sorted(why_not)]
    report.print_table(
        f"{case.title}: {case.details}; ms per step",
        COLUMNS,
        [cells(name, result) for name, result in results.items()],
        notes,
    )


def cells(name: str, result: dict[str, object]) -> list[str]:
    """A program's line of the table; a dash where nothing was measured."""
    step, split = result.get("ms_per_step"), result.get("split_ms_per_step", {})
    peak, same = result.get("peak_bytes"), result.get("same_tokens")

    def number(value: float | None, pattern: str = "{:.2f}") -> str:
        return "-" if value is None else pattern.format(value)

    return [
        name,
        number(result.get("tokens_per_second"), "{:.1f}"),
        number(result.get("useful_tokens_per_second"), "{:.1f}"),
        number(result.get("forwards"), "{:d}"),
        number(result.get("tokens_per_forward")),
        f"{step['median']:.2f} ({step['p10']:.2f}-{step['p90']:.2f})" if step else "-",
        number(result.get("speedup"), "{:.2f}x"),
        *(number(split.get(part)) for part in ("body", "head_sampling", "transfer")),
        number(peak and peak / 1e6, "{:.0f}"),
        number(result.get("first_run_seconds")),
        number(same, "{:.1%}") if same is not None else ("n/a" if "same_tokens_why_not" in result else "-"),
    ]


def main(arguments: list[str] | None = None, load: Callable[..., models.Loaded] = models.load) -> int:
    """Measure every case; 1 where a case could not be measured at all, 2 for invalid options.

    `load` loads a model; several calls can share one by another function.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    try:
        cases = cases_of(options)
    except ValueError as error:
        print(f"sampler_throughput: {error}", file=sys.stderr)
        return 2
    deadline = time.monotonic() + options.budget if options.budget else None
    names = options.providers or providers.default_names(device)
    kind, measuring = "sampler", measure
    if options.measured_steps:
        kind, measuring = "sampler_steps", measured_steps.measure
        names = options.providers or ["card", "ours-eager"]
    row_base = report.new_row(kind, "benchmarks/sampler_throughput.py", arguments, device)
    row_base["memory_bytes_per_second"] = machine.bandwidth(device)
    loaded, rows, paths = None, [], []
    for case in cases:
        row = row_base | {"settings": dataclasses.asdict(case) | {"approximate": case.approximate}}
        row["load_average"] = os.getloadavg()[0]  # of the last minute; the measurement itself is a part of later ones
        if options.measured_steps:
            row["timed_run"] = dataclasses.asdict(case.measured)
        try:
            if deadline and time.monotonic() > deadline:
                raise TimeoutError(f"not started: the budget of {options.budget:g} s was used up")
            if loaded is None or loaded.source != case.model:
                loaded = None  # two models may not fit into memory
                gc.collect()
                loaded = load(case.model, models.DTYPES[case.dtype], device, seed=case.seed, mask_id=options.mask_id)
        except (ValueError, OSError, models.NotEnoughMemoryError) as error:
            row["error"] = f"{type(error).__name__}: {error}"
            print(f"{case.title}: {error}", file=sys.stderr)
        else:
            row["parameters"] = loaded.parameters
            head_bytes = loaded.model.get_output_embeddings().weight.nbytes
            row["head_read_ms"] = 1000 * head_bytes / row["memory_bytes_per_second"]["read"]
            row["providers"] = measuring(
                loaded, case, names, options.repeats, check_noise=options.check_noise, deadline=deadline
            )
            print_case(case, row["providers"])
            if all("error" in result for result in row["providers"].values()):
                row["error"] = "no provider could be measured"
        rows.append(row)
        paths.append(report.write_row(row, options.out, dataclasses.replace(case, model=Path(case.model).name).slug))
    if options.plot:
        from benchmarks import plot

        plot.sampler_rows(rows, options.plot)
    report.print_last_line(last_line(rows, paths, options.plot))
    return int(any("error" in row for row in rows))


def last_line(rows: list[dict], paths: list[Path], plot: Path | None) -> dict[str, object]:
    """The last line of stdout: key numbers of each case, and the paths of rows and plot."""
    keys = ("tokens_per_second", "forwards", "tokens_per_forward", "ms_per_step", "speedup", "same_tokens")
    keys += ("peak_bytes", "split_ms_per_step", "speedup_of_steps", "speedup_over_full_canvas", "error")
    settings = ("model", "sampler", "approximate", "dtype", "device", "batch", "temperature")
    cases = [
        {key: row["settings"][key] for key in settings}
        | {"error": row.get("error"), "row": str(path)}
        | {name: {k: r[k] for k in keys if k in r} for name, r in row.get("providers", {}).items()}
        for row, path in zip(rows, paths, strict=True)
    ]
    return {"cases": cases, "plot": str(plot) if plot else None}


if __name__ == "__main__":
    sys.exit(exit_code("sampler_throughput", main))
