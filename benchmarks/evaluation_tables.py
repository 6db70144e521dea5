"""The reference tables of docs/evaluation.md, from the settings, tasks and scores that are kept as data.

    python -m benchmarks.evaluation_tables            rewrite the marked tables
    python -m benchmarks.evaluation_tables --check    only compare; exit status 1 where the page is out of date

The page marks each place with two lines, of which the first names the table, `settings`, `tasks` or `scores`:

    <!-- evaluation:begin settings -->
    <!-- evaluation:end -->
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks import machine, markdown
from dllm.core.eval.settings import ERA, task_settings
from dllm.core.eval.settings.tables import Table, tables
from dllm.core.eval.tasks import tasks_folder
from dllm.exits import exit_code

PAGE = machine.ROOT / "docs" / "evaluation.md"
SCORES = Path(__file__).with_name("published_scores.yaml")
PLACE = re.compile(
    r"^(?P<begin><!-- evaluation:begin (?P<name>\w+) -->\n)(?P<old>.*?)(?P<end>^<!-- evaluation:end -->)$",
    re.DOTALL | re.MULTILINE,
)
MARKER = re.compile(r"^<!-- evaluation:", re.MULTILINE)
SETTINGS_HEAD = ("task", "in lm-eval", "shots", "new tokens = steps", "block", "T", "top_p", "mc_num", "guidance")
SECTION_TITLES = {"base": "base models", "instruct": "instruct models", "any": "all models"}


def settings_tables() -> str:
    """A table for each family, era and kind of model."""
    parts = []
    for table in tables().values():
        for section, lines in table.sections.items():
            title = f"**{table.family}, {SECTION_TITLES[section]}** (`{table.model}`{_common(table)}; {table.source})"
            parts.append(title)
            parts.append(markdown.table(SETTINGS_HEAD, [_settings_line(task, line) for task, line in lines.items()]))
    return "\n\n".join(parts)


def _common(table: Table) -> str:
    return "".join(f", `{name}={value}`" for name, value in table.model_args.items())


def _settings_line(task: str, line: Mapping[str, Any]) -> list[str]:
    names = ("shots", "new_tokens", "block_size", "temperature", "top_p", "mc_num", "cfg_scale")
    cells = {name: str(line.get(name, "")) for name in names}
    if line.get("check_greedy"):
        cells["mc_num"] += ", greedy"
    runs = line.get("runs", task)
    return [f"`{task}`", f"`{runs}`" if runs != task else "", *cells.values()]


def tasks_table() -> str:
    """A line for each task file of the package: what its head says."""
    lines = []
    for path in sorted(tasks_folder().glob("*.yaml")):
        head = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")]
        said = " ".join(head).replace("|", "\\|")
        said = re.sub(r'\[/?\w+\]|"[^"]+"', r"`\g<0>`", said)  # what a browser would take for its own
        lines.append([f"`{path.stem}`", said])
    return markdown.table(("task", "what it is, what of it was seen, and what is ours"), lines)


def scores_tables() -> str:
    """A table for each model and way of evaluating it: published scores, an empty column for ours, the command."""
    parts = []
    for part in yaml.safe_load(SCORES.read_text(encoding="utf-8")):
        columns = part["columns"]
        parts.append(f"**{part.get('title', part['model'].partition('/')[2])}**")
        lines = [
            [
                score["name"],
                *(f"{score[column]:.1f}" if column in score else "" for column in columns),
                "",
                f"`{command(part, score)}`",
            ]
            for score in part["scores"]
        ]
        parts.append(markdown.table(("benchmark", *columns.values(), "ours", "command"), lines))
    return "\n\n".join(parts)


def command(part: Mapping[str, Any], score: Mapping[str, Any]) -> str:
    """The command that reproduces a score.

    Raises:
        ValueError: the settings have no such line.
    """
    family, instruct, task = part["family"], part["instruct"], score["task"]
    task_settings(family, task, instruct=instruct, era=ERA)
    if "with" not in score:
        return f"bash scripts/eval.slurm.sh {family} {task} {part['model']}{' True' if instruct else ''}"
    args = ",".join(f"{name}={value}" for name, value in score["with"].items())
    args = f"'{args}'" if "[" in args else args
    published = "--published --instruct" if instruct else "--published"
    words = f"dllm eval {part['model']} --model {family} {published} --tasks {task} --model-args {args}"
    return f"{words} --confirm-run-unsafe-code" if task.startswith(("humaneval", "mbpp")) else words


TABLES = {"settings": settings_tables, "tasks": tasks_table, "scores": scores_tables}


def with_tables(text: str) -> str:
    """The text of the page with new tables in every marked place.

    Raises:
        ValueError: a table has no place or several, a marker has no partner, or it names an unknown table.
    """
    named = [place["name"] for place in PLACE.finditer(text)]
    if sorted(named) != sorted(TABLES) or len(MARKER.findall(text)) != 2 * len(TABLES):
        raise ValueError(f"the page must have one pair of markers for each of {', '.join(TABLES)}, got {named}")
    return PLACE.sub(lambda place: f"{place['begin']}\n{TABLES[place['name']]()}\n\n{place['end']}", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the page; 1 where a check fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if the page is out of date")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    before = options.page.read_text(encoding="utf-8")
    after = with_tables(before)
    if options.check and before != after:
        print(f"{options.page.name} is out of date: run python -m benchmarks.evaluation_tables", file=sys.stderr)
        return 1
    if not options.check:
        options.page.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("evaluation_tables", main))
