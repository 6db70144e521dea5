"""Test and measure everything on this machine's GPU, in at most nine minutes.

    python -m benchmarks.gpu_report [--out DIR] [--quick] [--section NAME ...] [--wheels DIR] [--again]

Sections run one after the other: tests, the machine's ceilings, single operations, sampling, training. Each runs in a
separate process with a time limit. Nothing is measured whose tests failed. The rows of finished sections are kept in
DIR (default: benchmarks/results/<gpu>-<date>), and the same command resumes a report that was stopped. At the end it
writes plots and DIR/report.md, which compares the measured values with their targets.

Without a CUDA device it is a dry run: everything runs on tiny shapes, nothing is timed, and no row is written. The exit
status is 1 where a section failed or was withheld.
"""

from __future__ import annotations

import argparse
import datetime
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_report import runner
from benchmarks.gpu_report.sections import GROUPS, NAMES, Section, chosen
from benchmarks.gpu_report.words import without

ROOT = Path(__file__).resolve().parents[2]
DRY = "No CUDA device: a dry run. Everything runs on tiny shapes; nothing is timed and no row is written."


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; unknown options and sections end the program."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_report", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", type=Path, default=None, help="folder of the report; default: benchmarks/results/<gpu>-<date>")
    add("--quick", action="store_true", help="fewer cases and repeats, in half the time")
    add("--section", nargs="+", metavar="NAME", help=f"{', '.join(NAMES)}, or a group: {', '.join(GROUPS)}")
    add(
        "--wheels",
        type=Path,
        default=None,
        metavar="DIR",
        help="install missing packages from these wheels into <out>/venv",
    )
    add("--again", action="store_true", help="run sections again that are done already")
    options = parser.parse_args(arguments)
    try:
        options.sections = chosen(options.section)
    except ValueError as error:
        parser.error(str(error))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the report; 1 where a section failed or was withheld, 2 for invalid options."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(arguments)
    import torch

    dry = not torch.cuda.is_available()
    sections = [section for section in options.sections if dry or not section.only_dry]
    out = (options.out or default_folder(dry)).resolve()
    try:
        check(out, sections, dry=dry)
    except (ValueError, OSError) as error:
        print(f"gpu_report: {error}", file=sys.stderr)
        return 2
    if options.wheels is not None:
        return elsewhere(options.wheels, out, arguments)
    from benchmarks import machine
    from benchmarks.gpu_report import state, summary

    tell(DRY if dry else f"Measuring {torch.cuda.get_device_name()}; results go to {out}")
    how = {"dry": dry, "quick": options.quick, "again": options.again}
    states = runner.run(sections, out, **how, commit=machine.commit(), tell=tell)
    ended = [state.read(out, name) for name in NAMES]  # also those of earlier runs
    tell(summary.write(out, [each for each in ended if each], dry=dry))
    tell(f"The report is {out / summary.FILE}")
    return int(not all(each.fine for each in states))


def check(out: Path, sections: Sequence[Section], *, dry: bool) -> None:
    """Make the folder and check the options, before anything runs.

    Raises:
        ValueError: no section is for this machine, or a dry run would overwrite measured results.
        OSError: `out` is not a writable folder.
    """
    from benchmarks.gpu_report import state

    if not sections:
        raise ValueError("the static section is for machines without a GPU: python -m benchmarks.static_report")
    out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=out).close()
    before = [state.read(out, name) for name in NAMES] if dry else []
    if any(each and each.mode == "measured" for each in before):
        raise ValueError(f"{out} holds what was measured on a GPU, which a dry run would replace: name another --out")


def default_folder(dry: bool) -> Path:
    """The folder of a report without --out: among the other results, or in build/ for a dry run."""
    if dry:
        return ROOT / "build" / "gpu-report-dry"
    import torch

    gpu = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return ROOT / "benchmarks" / "results" / f"{gpu}-{datetime.datetime.now(datetime.timezone.utc):%Y%m%d}"


def elsewhere(wheels: Path, out: Path, arguments: list[str]) -> int:
    """Run the same report with the Python of a virtual environment that has the missing packages; its exit status."""
    from benchmarks.gpu_report.wheels import environment

    try:
        python = environment(wheels, out / "venv", tell)
    except (ValueError, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"gpu_report: {error}", file=sys.stderr)
        return 2
    words = [*without(without(arguments, "--wheels"), "--out"), "--out", str(out)]
    return subprocess.run([str(python), "-m", "benchmarks.gpu_report", *words], cwd=ROOT).returncode


def tell(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that sections are ended as well
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
