"""Tables of measured results, written into README.md, benchmarks/RESULTS.md and the pages of docs/.

    python -m benchmarks.table            rewrite every marked table
    python -m benchmarks.table --check    only compare; exit status 1 where a page is out of date

A page marks each place for tables with two lines. The first names the kinds of rows to show, or none for all kinds:

    <!-- results:begin sampler training_step -->
    <!-- results:end -->

The rows are the files that benchmarks/results/chosen.txt lists. Instead of kinds, `summary` shows those that are marked
with this word there, in one table. Below its tables each place lists the commands that measured them, by number.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection
from pathlib import Path

from benchmarks import (
    body_tables,
    canvas_tables,
    kernel_tables,
    machine,
    markdown,
    report,
    sampling_tables,
    serving_tables,
    training_tables,
)
from benchmarks.summary_table import SUMMARY_HEAD, summary_lines
from dllm.exits import exit_code

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
PLACE = re.compile(
    r"^(?P<begin><!-- results:begin(?P<kinds>(?: \w+)*) -->\n)(?P<old>.*?)(?P<end>^<!-- results:end -->)$",
    re.DOTALL | re.MULTILINE,
)
SUMMARY = "summary"
MARKER = re.compile(r"^<!-- results:", re.MULTILINE)
# kind of a row: the columns of its table, and the function that makes its lines
KINDS = {
    "sampler": (sampling_tables.SAMPLER_HEAD, sampling_tables.sampler_lines),
    "sampler_steps": (sampling_tables.STEPS_HEAD, sampling_tables.steps_lines),
    "cpu_kernels": (kernel_tables.KERNEL_HEAD, kernel_tables.kernel_lines),
    "ceilings": (kernel_tables.CEILINGS_HEAD, kernel_tables.ceilings_lines),
    "kernel": (kernel_tables.GPU_KERNEL_HEAD, kernel_tables.gpu_kernel_lines),
    "cpu_head": (kernel_tables.HEAD_HEAD, kernel_tables.head_lines),
    "cpu_experts": (kernel_tables.EXPERTS_HEAD, kernel_tables.experts_lines),
    "cpu_cross_entropy": (training_tables.ENTROPY_HEAD, training_tables.entropy_lines),
    "training_step": (training_tables.TRAINING_HEAD, training_tables.training_lines),
    "cpu_bodies": (body_tables.BODY_HEAD, body_tables.body_lines),
    "llama_cpp": (body_tables.LLAMA_HEAD, body_tables.llama_lines),
    "diffusion_gemma": (canvas_tables.CANVAS_HEAD, canvas_tables.canvas_lines),
    "cpu_embedding": (canvas_tables.EMBEDDING_HEAD, canvas_tables.embedding_lines),
    "nemotron_diffusion": (canvas_tables.NEMOTRON_HEAD, canvas_tables.nemotron_lines),
    "cached_decoding": (sampling_tables.CACHED_HEAD, sampling_tables.cached_lines),
    "quality": (sampling_tables.QUALITY_HEAD, sampling_tables.quality_lines),
    "serving": (serving_tables.SERVING_HEAD, serving_tables.serving_lines),
}
DOCUMENTS = ("README.md", "benchmarks/RESULTS.md")  # must have a place for tables; pages of docs/ may


def main(arguments: list[str] | None = None) -> int:
    """Write or check the pages; 1 where a check fails, 2 where a file or a marker is missing or wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where a page is out of date")
    parser.add_argument("--root", type=Path, default=machine.ROOT, help="folder with README.md, docs/ and benchmarks/")
    options = parser.parse_args(arguments)
    try:
        results = options.root / "benchmarks" / "results"
        rows, marked = report.chosen_rows(results), report.chosen_rows(results, SUMMARY)
        before = {file: file.read_text() for file in pages(options.root)}
        after = {file: with_tables(text, rows, file.name, marked) for file, text in before.items()}
    except (OSError, ValueError) as error:
        print(f"benchmarks.table: {error}", file=sys.stderr)
        return 2
    stale = [file for file in before if before[file] != after[file]]
    for file in stale:
        if options.check:
            print(f"{file.name} is out of date: run python -m benchmarks.table", file=sys.stderr)
        else:
            file.write_text(after[file])
    return int(options.check and bool(stale))


def pages(root: Path) -> list[Path]:
    """Files with tables: the documents that must have some, and the pages of docs/ that mark a place for them."""
    docs = sorted((root / "docs").glob("*.md"))
    return [root / name for name in DOCUMENTS] + [page for page in docs if MARKER.search(page.read_text())]


def with_tables(text: str, rows: Collection[dict], name: str, marked: Collection[dict] = ()) -> str:
    """The text of the page called `name`, with new tables in every marked place; `marked` rows are for the summary.

    Raises:
        ValueError: there is no place, a marker has no partner or is misspelt, or it names an unknown kind.
    """

    def filled(place: re.Match) -> str:
        kinds = place["kinds"].split() or list(KINDS)
        if kinds == [SUMMARY]:
            return place["begin"] + f"{summary(marked)}\n" * bool(marked) + place["end"]
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise ValueError(f"{name}: kinds of rows must be among {', '.join(KINDS)}, got {', '.join(unknown)}")
        tables = table([row for row in rows if row["kind"] in kinds])
        return place["begin"] + (tables and f"{tables}\n") + place["end"]

    new, count = PLACE.subn(filled, text)
    if not count or len(MARKER.findall(text)) != 2 * count:
        raise ValueError(f"{name} needs the lines {BEGIN} and {END}, in pairs")
    return new


def table(rows: Collection[dict]) -> str:
    """The markdown tables of the rows, one for each kind, and the commands that measured them.

    Raises:
        ValueError: a row of a kind that has no table, or one that lacks what its table shows.
    """
    if unknown := {row["kind"] for row in rows} - KINDS.keys():
        raise ValueError(f"rows must be of a kind among {', '.join(KINDS)}, got {', '.join(sorted(unknown))}")
    commands = commands_of(rows)
    parts = []
    for kind, (head, lines_of) in KINDS.items():
        lines = [line for row in rows if row["kind"] == kind for line in lines_of(row, commands)]
        if lines:
            parts.append(markdown.table(head, lines))
    if commands:
        parts.append(numbered(commands))
    return "\n\n".join(parts)


def summary(rows: Collection[dict]) -> str:
    """One markdown table of sampling and training rows, and the commands that measured them."""
    commands = commands_of(rows)
    lines = [line for row in rows for line in summary_lines(row, commands)]
    return f"{markdown.table(SUMMARY_HEAD, lines)}\n\n{numbered(commands)}"


def commands_of(rows: Collection[dict]) -> list[str]:
    """The commands that measured the rows, each once."""
    return list(dict.fromkeys(row["command"] for row in rows))


def numbered(commands: Collection[str]) -> str:
    """Commands as a numbered markdown list."""
    return "\n".join(f"{number}. `{command}`" for number, command in enumerate(commands, start=1))


if __name__ == "__main__":
    sys.exit(exit_code("table", main))
