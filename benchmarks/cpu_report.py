"""Measure everything on this machine's CPU, the most important first: one command where another kind of CPU turns up.

    python -m benchmarks.cpu_report                  everything, in about half an hour on two cores
    python -m benchmarks.cpu_report head training    these parts

Programs run one after the other in processes of their own; the machine must do nothing else. Their rows, their output
and report.md, which has targets and tables, are in DIR (default: benchmarks/results/<cpu>-<date>). What is there of the
same commit is not measured again, so a command that was stopped goes on. Whether results are right on this CPU, the
tests say: run `make test` first. The exit status is 0 where all parts asked for have rows, 1 otherwise, 2 for invalid
options.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import cpu_targets, machine, markdown, report, table
from benchmarks.target import HEAD, verdict
from dllm.exits import exit_code

FILE = "report.md"
# every way that dllm runs a model on a CPU, beside the model card's loop
WAYS = "--providers card ours-eager ours-compiled ours-int8 ours-int8-compiled"
BODIES = "--bodies eager compiled openvino openvino-bfloat16 --repeats 3 --loop-steps 0"
# part: its commands, the most important part first
PARTS: dict[str, tuple[str, ...]] = {
    "head": ("cpu_head --repeats 15",),
    "sampling": (
        f"sampler_throughput --model modernbert-base --dtype bfloat16 --temperature 0 1 --steps 32 --repeats 2 {WAYS}",
        f"sampler_throughput --model minilm --temperature 0 1 --repeats 3 {WAYS}",
    ),
    "training": (
        "training_step --model minilm --repeats 5",
        "training_step --model minilm --dtype bfloat16 --repeats 3",
    ),
    "bodies": (
        f"cpu_bodies --model modernbert-base --dtype bfloat16 --shapes 1x128 1x192 8x192 {BODIES}",
        f"cpu_bodies --model minilm --dtype float32 --shapes 1x192 8x192 {BODIES}",
    ),
    "gauge": (
        "quality --task problems --tokens-per-step 4 --questions 100 --quantize none int8 --compile-body no yes",
    ),
    "experts": ("cpu_experts",),
    "kernels": ("cpu_kernels", "cpu_cross_entropy"),
    "embedding": ("cpu_head --operation embedding --repeats 3",),
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; unknown options and parts end the program."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.cpu_report", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--out", type=Path, default=None, help="folder (default: benchmarks/results/<cpu>-<date>)")
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"parts must be among {', '.join(PARTS)}, got {', '.join(unknown)}")
    options.parts = [part for part in PARTS if part in options.parts] or list(PARTS)
    options.out = (options.out or default_folder()).resolve()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{options.out} cannot be written to: {error.strerror}")
    return options


def default_folder() -> Path:
    """The folder of a report without --out, among the other results."""
    cpu = re.sub(r"[^a-z0-9]+", "-", machine.describe(torch.device("cpu"))["cpu"].lower()).strip("-")
    return report.RESULTS / f"{cpu}-{datetime.datetime.now(datetime.timezone.utc):%Y%m%d}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what has no rows yet and write the report; 1 where a part has none in the end."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    missing = []
    try:
        for command in (command for part in options.parts for command in PARTS[part]):
            if has_rows(options.out, command):
                tell(f"{command}: measured before")
            elif not measured(options.out, command):
                missing.append(command)
    finally:  # also where it is stopped
        tell(written(options.out, missing))
        tell(f"The report is {options.out / FILE}")
    return int(bool(missing))


def measured(out: Path, command: str) -> bool:
    """Run a command, whose output goes to a log in `out`; whether it succeeded and wrote rows."""
    program, *words = shlex.split(command)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(machine.ROOT), os.environ.get("PYTHONPATH", "")])}
    before, begun = len(rows_of(out)), time.monotonic()
    tell(command)
    with (out / "log.txt").open("a") as log:
        print(f"$ {command}", file=log, flush=True)
        status = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{program}", *words, "--out", str(out)],
            cwd=machine.ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    tell(f"  {time.monotonic() - begun:.0f} s" + (f", exit status {status}: see log.txt" if status else ""))
    return not status and len(rows_of(out)) > before


def has_rows(out: Path, command: str) -> bool:
    """Whether a command has rows of these sources."""
    return any(row["command"] == full(command) and row["commit"] == machine.commit() for row in rows_of(out))


def full(command: str) -> str:
    """A command as its rows have it.

    Example:
        >>> full("cpu_head --repeats 15")
        'python benchmarks/cpu_head.py --repeats 15'
    """
    program, *words = shlex.split(command)
    return " ".join([f"python benchmarks/{program}.py", *map(shlex.quote, words)])


def rows_of(out: Path) -> list[dict]:
    """The rows of a folder, the oldest first."""
    return [report.read_row(path) for path in sorted(out.glob("*.json"))]


def written(out: Path, missing: Sequence[str]) -> str:
    """Write `out`/report.md and return its text: targets, each with its worst case, and all rows."""
    rows = rows_of(out)
    parts = ["# CPU report"]
    if rows:
        parts += [_head(rows), "## Targets", _targets(rows), "## Rows", table.table(rows)]
    else:
        parts.append("No row was written.")
    if missing:
        parts += ["## Without rows", "\n".join(f"- `{full(command)}`" for command in missing)]
    text = "\n\n".join(parts)
    (out / FILE).write_text(text + "\n")
    return text


def _head(rows: Sequence[dict]) -> str:
    """Machines, versions and commits of the rows, and the load while they were measured, where they say it."""
    facts = rows[-1]["machine"]
    words = [machine.short_name(facts), facts["vector"], *facts["bfloat16"]]
    versions = [f"{name} {version}" for name, version in rows[-1]["versions"].items() if version]
    commits = dict.fromkeys(str(row["commit"]) for row in rows)
    loads = [row["load_average"] for row in rows if row.get("load_average") is not None]
    load = f" Load {min(loads):.1f} to {max(loads):.1f}." if loads else ""
    return f"{', '.join(words)}. {', '.join(versions)}. Commit {', '.join(commits)}.{load}"


def _targets(rows: Sequence[dict]) -> str:
    return markdown.table(HEAD, [verdict(target, rows).cells for target in cpu_targets.TARGETS])


def tell(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(exit_code("cpu_report", main))
