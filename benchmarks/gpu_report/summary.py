"""Write report.md of a report's folder, with targets, sections, tests and rows, and its plots."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import machine, markdown, table, target
from benchmarks.gpu_report import gate, kernels, runner, state, targets
from benchmarks.gpu_report.sections import SECTIONS
from benchmarks.gpu_report.state import DONE, FAILED, LEFT_OUT, RUNNING, Result

FILE = "report.md"
NOTHING = "Nothing was timed: this was a dry run, without a GPU."
WORDS = {DONE: gate.GREEN, FAILED: gate.RED}  # of checks; all others are unproven
SHOWN = 3  # reasons in a cell


def write(out: Path, *, dry: bool) -> str:
    """Write `out`/report.md and the plots; returns the text. Every row is in it, beside what its tests say."""
    rows = [] if dry else [row for section in SECTIONS for row in state.rows(out, section.name)]
    parts = ["# GPU report", _head(rows) if rows else NOTHING if dry else "No row was written."]
    if rows:
        parts += ["## Targets", _targets(rows)]
    parts += ["## Sections", _sections(out, dry=dry)]
    if checks := gate.results(out):
        parts += ["## Tests", _tests(checks)]
    if rows:
        parts += ["## Rows", *_tables(rows), *_utilization(rows, kernels.ceilings(out)), *_plots(rows, out)]
    text = "\n\n".join(parts)
    (out / FILE).write_text(text + "\n")
    return text


def _head(rows: Sequence[dict]) -> str:
    """Machine, versions, commits and attention of the rows, and how many have which tests."""
    machines = dict.fromkeys(machine.short_name(row["machine"]) for row in rows)
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in row["versions"].items() if version) for row in rows
    )
    commits = dict.fromkeys(str(row["commit"]) for row in rows)
    attentions = dict.fromkeys(
        ", ".join(f"{name}={value}" for name, value in row.get("attention", {}).items()) for row in rows
    )
    states = [_state(row) for row in rows]
    counted = ", ".join(f"{states.count(word)} {word}" for word in dict.fromkeys(states))
    about = f"{'; '.join(machines)}. {'; '.join(versions)}. Commit {', '.join(commits)}. {'; '.join(attentions)}."
    return f"{about}\n\nTests behind the {len(rows)} rows: {counted}."


def _state(row: Mapping[str, object]) -> str:
    return row.get("tests", {}).get("state", gate.UNPROVEN)


def _verdict(row: Mapping[str, object]) -> str:
    """What a row's tests say, with the first reasons."""
    why = row.get("tests", {}).get("why", [])
    return _cell(f"{_state(row)}: {_first(why)}" if why and _state(row) == gate.RED else _state(row))


def _first(reasons: Sequence[str]) -> str:
    return "; ".join(reasons[:SHOWN]) + f"; and {len(reasons) - SHOWN} more" * (len(reasons) > SHOWN)


def _sections(out: Path, *, dry: bool) -> str:
    lines = []
    for section in SECTIONS:
        ended = state.read(out, section.name)
        if ended and ended.mode == ("dry" if dry else "measured"):
            failed = [f"{name}: {_first(result.why)}" for name, result in ended.having(FAILED).items()]
            missing = list(ended.having(LEFT_OUT, RUNNING))
            notes = ([ended.reason] if ended.reason else []) + failed
            notes += [f"left out: {_first(missing)}"] if missing else []
            done = f"{runner.counts(ended)}{', not timed' if dry else ''}"
            lines.append([section.name, done, f"{ended.seconds:.0f}", "<br>".join(map(_cell, notes))])
    return markdown.table(("section", "items", "seconds", "failed, left out"), lines)


def _tests(checks: Mapping[str, Result]) -> str:
    """The table of checks: green, red with the failed tests, or unproven with the reason."""
    lines = [
        [name, WORDS.get(result.status, gate.UNPROVEN), f"{result.seconds:.0f}", "<br>".join(map(_cell, result.why))]
        for name, result in checks.items()
    ]
    return markdown.table(("tests", "", "seconds", "why"), lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _targets(rows: Sequence[dict]) -> str:
    """The table of targets, each with its worst case and what the tests of that case say."""
    found = targets.verdicts(rows)
    lines = [[*each.cells, _verdict(each.worst.row) if each.worst else "-"] for each in found]
    return markdown.table((*target.HEAD, "tests"), lines)


def _tables(rows: Sequence[dict]) -> list[str]:
    """A table for each kind of row, with the tests in the last column; then the rows that no table can show."""
    commands, notes, parts = table.commands_of(rows), [], []
    for kind, (head, lines_of) in table.KINDS.items():
        lines = []
        for row in rows:
            if row["kind"] == kind:
                try:
                    lines += [[*line, _verdict(row)] for line in lines_of(row, commands)]
                except (ValueError, KeyError) as error:
                    notes.append(f"Not in a table: {error}.")
        if lines:
            parts.append(markdown.table([*head, "tests"], lines))
    return [*parts, table.numbered(commands), *dict.fromkeys(notes)]


def _utilization(rows: Sequence[dict], found: kernels.Ceilings | None) -> list[str]:
    """The table of training steps: useful FLOP/s, and their share of the measured speed of a matrix product."""
    lines = []
    for row in rows:
        if row["kind"] != "training_step" or found is None:
            continue
        useful = sum(row["flops"][part] for part in ("body", "attention", "head_of_masked_rows"))
        for name, result in row["providers"].items():
            if "seconds" in result:
                speed = useful / result["seconds"]["median"]
                settings = row["settings"]
                what = f"{settings['model']}, {settings['batch']} x {settings['length']}, {name}"
                lines.append([what, f"{speed / 1e12:.0f}", f"{speed / found.product:.0%}", _verdict(row)])
    if not lines:
        return []
    useful = "useful TFLOP/s (body, attention, head of masked rows)"
    return [markdown.table(("training step", useful, "of the measured product speed", "tests"), lines)]


def _plots(rows: Sequence[dict], out: Path) -> list[str]:
    """Plots of the rows, where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return ["No plots: matplotlib is not installed."]
    from benchmarks import plot

    made = []
    for kind, draw in (("sampler", plot.sampler_rows), ("kernel", plot.kernel_rows)):
        of_kind = [row for row in rows if row["kind"] == kind and "providers" in row]
        if of_kind:
            try:
                made.append(f"![{kind}]({draw(of_kind, out / f'{kind}.png').name})")
            except Exception as error:  # whatever it is, it must not cost the report
                made.append(f"No plot of {kind}: {type(error).__name__}: {error}.")
    return made
