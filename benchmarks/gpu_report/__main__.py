"""Measure and test everything on this machine's GPU, the most important first, within the seconds of a plan.

    python -m benchmarks.gpu_report first     at most 4 minutes: ceilings, operations, the operations' tests
    python -m benchmarks.gpu_report second    at most 5 minutes: sampling, ModernBERT-large and LLaDA-8B, its tests
    python -m benchmarks.gpu_report           everything, in at most 13 minutes; --seconds gives any plan another limit

Each goes on with what it has left out or what failed when it is repeated in the same folder. Rows are never withheld:
the report says beside each whether its tests are green, red, or unproven. Sections run in processes of their own. The
results are in DIR (default: benchmarks/results/<gpu>-<date>), the report in DIR/report.md.

With --dry, which needs no GPU, the command prints its timetable, runs everything on tiny shapes, times nothing and
writes no row. The exit status is 0 where everything asked for is done and green, 1 otherwise, 2 for invalid options.
"""

from __future__ import annotations

import argparse
import datetime
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_report.sections import NAMES, PLANS, Section, chosen, module_of

ROOT = Path(__file__).resolve().parents[2]
DRY = "A dry run: everything runs on tiny shapes; nothing is timed and no row is written."


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; unknown options, plans and sections end the program."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_report", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("plan", nargs="?", choices=list(PLANS), default="all", help="which sections, and how long; default: all")
    add("--section", nargs="+", metavar="NAME", help=f"these sections instead of a plan's: {', '.join(NAMES)}")
    add("--seconds", type=float, default=None, help="limit of the whole command instead of the plan's")
    add("--out", type=Path, default=None, help="folder of the report; default: benchmarks/results/<gpu>-<date>")
    add("--dry", action="store_true", help="print the timetable and rehearse on the CPU")
    add("--again", action="store_true", help="also run what is done already")
    options = parser.parse_args(arguments)
    names, seconds = PLANS[options.plan]
    options.seconds = seconds if options.seconds is None else options.seconds
    if not options.seconds > 0:
        parser.error(f"--seconds must be above 0, got {options.seconds:g}")
    try:
        options.sections = chosen(options.section or names)
    except ValueError as error:
        parser.error(str(error))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the report; 1 where something is not done or not green, 2 for invalid options."""
    begun = time.monotonic()
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        out = checked(options)
    except (ValueError, OSError) as error:
        print(f"gpu_report: {error}", file=sys.stderr)
        return 2
    from benchmarks.gpu_report import gate, runner, summary, timetable

    if options.again:
        for section in options.sections:
            (out / section.name / "section.json").unlink(missing_ok=True)
    todo = {section: items for section, items in runner.due(options.sections, out, dry=options.dry).items() if items}
    slots = timetable.plan(
        planned(options.sections) if options.dry else todo, options.seconds, timetable.Durations(out)
    )
    tell(f"{DRY}\n\nOn a GPU it would be:" if options.dry else f"Results go to {out}")
    tell(timetable.told(slots, options.seconds))
    try:
        runner.run(options.sections, out, begun + options.seconds, dry=options.dry, tell=tell)
    finally:  # also where it is stopped
        gate.stamp_all(out)
        tell(summary.write(out, dry=options.dry))
        tell(f"The report is {out / summary.FILE}")
    return int(any(runner.due(options.sections, out, dry=options.dry).values()))


def planned(sections: Sequence[Section]) -> dict[Section, list]:
    """All items that the sections have on a GPU."""
    return {section: module_of(section.name).items(section.name, dry=False) for section in sections}


def checked(options: argparse.Namespace) -> Path:
    """The folder of the report, made and writable, after a check that the options are for this machine.

    Raises:
        ValueError: there is no GPU, a section cannot run here, or a dry run would replace measured results.
        OSError: the folder cannot be written to.
    """
    import torch

    from benchmarks.gpu_report import checks, state

    if not options.dry:
        if not torch.cuda.is_available():
            raise ValueError("no CUDA device was found; --dry rehearses without one")
        if missing := [why for section in options.sections if (why := checks.missing(section.name))]:
            raise ValueError(missing[0])
    out = (options.out or default_folder(options.dry)).resolve()
    out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=out).close()
    found = [state.read(out, name) for name in NAMES] if options.dry else []
    if any(each and each.mode == "measured" for each in found):
        raise ValueError(f"{out} holds what was measured on a GPU, which a dry run would replace: name another --out")
    return out


def default_folder(dry: bool) -> Path:
    """The folder of a report without --out: among the other results, or in build/ for a dry run."""
    if dry:
        return ROOT / "build" / "gpu-report-dry"
    import torch

    gpu = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return ROOT / "benchmarks" / "results" / f"{gpu}-{datetime.datetime.now(datetime.timezone.utc):%Y%m%d}"


def tell(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that sections are ended as well
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
