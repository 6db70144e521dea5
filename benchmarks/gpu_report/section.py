"""Run one section in this process: ``python -m benchmarks.gpu_report.section NAME DIR --seconds S``.

The report starts it. The section writes its rows into DIR/NAME and prints to stdout. The last line of stdout is one
JSON object: cases left out for lack of time, cases withheld because their tests are red, and failures.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_report import gate
from benchmarks.gpu_report.run import Run
from benchmarks.gpu_report.sections import SECTIONS

WATCHED_EVERY = 0.5  # seconds
MARGIN = 0.85  # share of a section's seconds after which it starts no further case


def end_with(report: int) -> None:
    """Kill this section and its processes once the report has ended, so that nothing keeps the GPU busy."""
    while os.getppid() == report:
        time.sleep(WATCHED_EVERY)
    os.killpg(0, signal.SIGKILL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a section; 1 where something in it failed or was withheld."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("section", choices=[section.name for section in SECTIONS])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", type=int, metavar="PID", help="end with that process, and with all started here")
    options = parser.parse_args(arguments)
    if options.report:
        threading.Thread(target=end_with, args=(options.report,), daemon=True).start()
    section = next(section for section in SECTIONS if section.name == options.section)
    deadline = time.monotonic() + MARGIN * options.seconds
    run = Run(section, options.out, deadline, options.dry, options.quick)
    run.folder.mkdir(parents=True, exist_ok=True)
    if section.whole:
        run.withheld = [f"{name}: {reason}" for name in section.needs for reason in gate.failed_checks(run.out, name)]
    if not run.withheld:
        module, _, function = section.run.partition(":")
        getattr(importlib.import_module(f"benchmarks.gpu_report.{module}"), function)(run)
    print(json.dumps({name: getattr(run, name) for name in ("left_out", "withheld", "failures")}), flush=True)
    return int(bool(run.withheld or run.failures))


if __name__ == "__main__":
    sys.exit(main())
