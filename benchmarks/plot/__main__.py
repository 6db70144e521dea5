"""Plots of published results, the files docs/*.svg that `published.PLOTS` names, drawn from the chosen rows.

    python -m benchmarks.plot            draw them
    python -m benchmarks.plot --check    only compare; exit status 1 where one is out of date

The rows are the files that benchmarks/results/chosen.txt lists, as for the tables (benchmarks.table).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import machine, report
from benchmarks.plot import published
from dllm.exits import exit_code


def main(arguments: list[str] | None = None) -> int:
    """Draw or check the plots; 1 where a check fails, 2 where rows are missing or wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plot", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where a plot is out of date")
    parser.add_argument("--root", type=Path, default=machine.ROOT, help="folder with docs/ and benchmarks/")
    options = parser.parse_args(arguments)
    docs = options.root / "docs"
    try:
        rows = report.chosen_rows(options.root / "benchmarks" / "results")
        points = {name: published.points_of(name, rows) for name in published.PLOTS}
        stale = [name for name in points if published.read_points(docs / name) != points[name]]
        if not options.check:
            for name in points:
                published.write(name, points[name], docs)
            return 0
    except (OSError, ValueError) as error:
        print(f"benchmarks.plot: {error}", file=sys.stderr)
        return 2
    for name in stale:
        print(f"docs/{name} is out of date: run python -m benchmarks.plot", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(exit_code("plot", main))
