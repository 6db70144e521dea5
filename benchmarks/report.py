"""Output of a measurement: progress on stderr, a table on stdout, a JSON row in the results folder."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import math
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import files, machine

RESULTS = machine.ROOT / "benchmarks" / "results"
WIDE = 170


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar of `total` parts on stderr; plain lines where stderr is no terminal.

    Yields:
        ``begin(text)``: call it before each part; all earlier parts then count as done.
    """
    begun = itertools.count()
    if not sys.stderr.isatty():
        yield _plain_lines(total, begun)
        return
    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    # few refreshes: the thread that draws the bar runs on the cores that are being measured
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=2) as bar:
        task = bar.add_task("", total=total)
        yield lambda text: bar.update(task, description=text, completed=next(begun))


def _plain_lines(total: int, begun: Iterator[int]) -> Callable[[str], None]:
    """Print a line for each part, at most one per second."""
    start, last = time.monotonic(), -math.inf

    def begin(text: str) -> None:
        nonlocal last
        number, now = next(begun) + 1, time.monotonic()
        if now - last >= 1:
            last = now
            print(f"[{number}/{total}, {now - start:.0f} s] {text}", file=sys.stderr, flush=True)

    return begin


def count(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1: 1 row, 2 rows."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Print a table with notes below it; where stdout is no terminal, it is as wide as it needs."""
    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(title, style="bold", soft_wrap=True)
    console.print(table)
    for note in notes:
        console.print(f"  {note}", markup=False, soft_wrap=True)


def new_row(kind: str, program: str, arguments: Sequence[str], device: torch.device) -> dict[str, object]:
    """The fields that every row has: kind, date, command, commit, machine and versions.

    Options of the command that say where to write (--out, --plot) are left out.
    """
    kept, skip = [], False
    for argument in arguments:
        written = argument.partition("=")[0] in ("--out", "--plot")
        if not (skip or written):
            kept.append(argument)
        skip = written and "=" not in argument
    return {
        "kind": kind,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join([f"python {program}", *map(shlex.quote, kept)]),
        "commit": machine.commit(),
        "machine": machine.describe(device),
        "versions": machine.versions(),
    }


def write_row(row: dict[str, object], folder: Path, slug: str) -> Path:
    """Write a row as `folder`/<date>-<slug>.json and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    moment = re.sub(r"[-:]", "", str(row["date"])).partition("+")[0]
    path = folder / f"{moment}-{row['kind']}-{slug}.json"
    files.write_json(path, row)
    return path


def read_row(path: Path) -> dict[str, object]:
    """A row that :func:`write_row` wrote."""
    return json.loads(path.read_text())


def chosen_rows(folder: Path = RESULTS) -> list[dict[str, object]]:
    """The rows that published tables and plots show: those that `folder`/chosen.txt lists, in its order."""
    return [read_row(path) for path in chosen(folder)]


def chosen(folder: Path) -> list[Path]:
    """The files that `folder`/chosen.txt lists, one name a line; empty lines and lines that begin with # are skipped.

    A name with a * stands for all files that match it: `nvidia-h200-20261122/*/2*.json`.

    Raises:
        ValueError: no file matches.
    """
    lines = [line.strip() for line in (folder / "chosen.txt").read_text().splitlines()]
    paths = []
    for line in lines:
        if line and not line.startswith("#"):
            found = sorted(folder.glob(line)) if "*" in line else [folder / line]
            if not found:
                raise ValueError(f"{line} in chosen.txt must fit a file in {folder}, got none")
            paths += found
    return paths


def print_last_line(summary: dict[str, object]) -> None:
    """Print the machine-readable last line of a benchmark: one JSON object."""
    print(json.dumps(summary), flush=True)
