"""Prove and measure everything on the GPU at hand, in at most nine minutes.

    python -m benchmarks.gpu_report [--out DIR] [--quick] [--section NAME ...] [--wheels DIR] [--again]

Sections run one after the other, each in a process of its own with a budget of seconds: tests; the ceilings; every
operation; sampling; training. Where tests are red, what they stand behind is not measured. The rows of finished
sections stay in DIR (default: benchmarks/results/<gpu>-<date>); the same command goes on where it was stopped. From the
rows it makes DIR/report.md, with what was aimed at beside what was measured, and plots.

Without a CUDA device it is a dry run: everything runs but the timing, on tiny shapes, and no row is written. The exit
status is 1 where a section failed or was withheld.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_report import runner
from benchmarks.gpu_report.sections import GROUPS, NAMES, chosen
from benchmarks.gpu_report.words import without

ROOT = Path(__file__).resolve().parents[2]
DRY = "No CUDA device: a dry run. Everything runs but the timing; nothing is measured and no row is written."


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; unknown options and sections end the program."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_report", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", type=Path, default=None, help="folder for everything; default: benchmarks/results/<gpu>-<date>")
    add("--quick", action="store_true", help="fewer cases and repeats, in half of the time")
    add("--section", nargs="+", metavar="NAME", help=f"{', '.join(NAMES)}, or a group: {', '.join(GROUPS)}")
    add("--wheels", type=Path, default=None, metavar="DIR", help="install what is missing from here, into DIR/venv")
    add("--again", action="store_true", help="run sections anew that have ended well before")
    options = parser.parse_args(arguments)
    try:
        options.sections = chosen(options.section)
    except ValueError as error:
        parser.error(str(error))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the report; 1 where a section failed or was withheld, 2 for bad options."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(arguments)
    import torch

    dry = not torch.cuda.is_available()
    out = (options.out or default_folder(dry)).resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.wheels is not None:
        return elsewhere(options.wheels, out, arguments)
    from benchmarks import machine
    from benchmarks.gpu_report import summary

    tell(DRY if dry else f"Measuring {torch.cuda.get_device_name()}; everything goes to {out}")
    sections = [section for section in options.sections if dry or not section.only_dry]
    how = {"dry": dry, "quick": options.quick, "again": options.again}
    states = runner.run(sections, out, **how, commit=machine.commit(), tell=tell)
    tell(summary.write(out, states, dry=dry))
    tell(f"The report is {out / summary.FILE}")
    return int(not all(ended.fine for ended in states))


def default_folder(dry: bool) -> Path:
    """Where a report goes that nobody has named a folder for: what was measured to the other results."""
    if dry:
        return ROOT / "build" / "gpu-report-dry"
    import torch

    gpu = torch.cuda.get_device_name().lower().replace(" ", "-")
    return ROOT / "benchmarks" / "results" / f"{gpu}-{datetime.datetime.now(datetime.timezone.utc):%Y%m%d}"


def elsewhere(wheels: Path, out: Path, arguments: list[str]) -> int:
    """The same report by an interpreter that has what is missing here."""
    from benchmarks.gpu_report.wheels import environment

    try:
        python = environment(wheels, out / "venv", tell)
    except (ValueError, RuntimeError) as error:
        print(f"gpu_report: {error}", file=sys.stderr)
        return 2
    words = [*without(without(arguments, "--wheels"), "--out"), "--out", str(out)]
    return subprocess.run([str(python), "-m", "benchmarks.gpu_report", *words], cwd=ROOT).returncode


def tell(text: str) -> None:
    """A line for whoever waits."""
    print(text, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
