"""Write report.md of a report's folder, with targets, sections and tables, and its plots."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine, markdown, table
from benchmarks.gpu_report import ceilings, gate, state, targets
from benchmarks.gpu_report.sections import SECTIONS
from benchmarks.gpu_report.state import State

FILE = "report.md"
NOTHING = "Nothing was timed: this was a dry run, on a machine without a CUDA device."


def write(out: Path, states: Sequence[State], *, dry: bool) -> str:
    """Write `out`/report.md and the plots; returns the text.

    Rows whose tests are red are left out, also those of earlier runs.
    """
    rows = [] if dry else reportable(out)
    parts = [
        "# GPU report",
        _head(rows, out) if rows else NOTHING if dry else "No row was written.",
        _sections(states),
    ]
    if rows:
        shown, notes = _with_a_table(rows)
        parts += ["## Targets and measured values", _targets(rows), "## Rows", table.table(shown), *notes]
        parts += _utilization(shown, ceilings.read(out)) + _plots(rows, out)
    text = "\n\n".join(parts)
    (out / FILE).write_text(text + "\n")
    return text


def reportable(out: Path) -> list[dict]:
    """The rows of all sections whose tests are not red."""
    rows = []
    for section in SECTIONS:
        red = {name for name in section.needs if gate.failed_checks(out, name)}
        for row in state.rows(out, section.name):
            behind = set(section.needs) if section.whole else {row["settings"]["op"]}
            if not behind & red:
                rows.append(row)
    return rows


def _head(rows: Sequence[dict], out: Path) -> str:
    """Machine, versions and commit of the rows, and warnings where tests did not run or ran on another commit."""
    machines = dict.fromkeys(machine.short_name(row["machine"]) for row in rows)
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in row["versions"].items() if version) for row in rows
    )
    commits = dict.fromkeys(str(row["commit"]) for row in rows)
    warnings = []
    if without := untested(out):
        warnings.append(f"**The tests were not run behind {', '.join(without)}.**")
    tests = state.read(out, "tests")
    if tests is not None and set(commits) != {str(tests.commit)}:
        warnings.append(f"**The tests were run on commit {tests.commit}.**")
    return "\n\n".join([f"{'; '.join(machines)}. {'; '.join(versions)}. Commit {', '.join(commits)}.", *warnings])


def untested(out: Path) -> list[str]:
    """Sections that have rows, but whose tests were not run."""
    with_rows = [section for section in SECTIONS if any(state.rows(out, section.name))]
    return [section.name for section in with_rows if not gate.tested(out, section.needs)]


def _sections(states: Sequence[State]) -> str:
    lines = [
        [
            ended.section,
            ended.status if ended.mode == "measured" else f"{ended.status}, not timed",
            f"{ended.seconds:.0f}",
            "<br>".join(_cell(note) for note in _notes(ended)),
        ]
        for ended in states
    ]
    return markdown.table(("section", "status", "seconds", "left out, withheld, failed"), lines)


def _notes(ended: State) -> list[str]:
    notes = [ended.reason] if ended.reason else []
    for name in ("left_out", "withheld", "failures"):
        notes += [f"{name.replace('_', ' ')}: {note}" for note in getattr(ended, name)]
    return notes


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _targets(rows: Sequence[dict]) -> str:
    """The table of targets, each with its worst case."""
    lines = [
        [
            verdict.target.what,
            _cell(verdict.target.formula),
            verdict.target.aim,
            f"{verdict.worst.value:.2f} ({verdict.worst.where})" if verdict.worst else "-",
            verdict.word,
        ]
        for verdict in targets.verdicts(rows)
    ]
    return markdown.table(("target", "formula", "goal", "measured, worst case", ""), lines)


def _with_a_table(rows: Sequence[dict]) -> tuple[list[dict], list[str]]:
    """The rows that a table can show, and a note for each of the others on what it lacks."""
    shown, notes = [], []
    for row in rows:
        try:
            table.table([row])
            shown.append(row)
        except ValueError as error:
            notes.append(f"Not in a table: {error}.")
    return shown, list(dict.fromkeys(notes))


def _utilization(rows: Sequence[dict], found: ceilings.Ceilings | None) -> list[str]:
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
                lines.append([what, f"{speed / 1e12:.0f}", f"{speed / found.product:.0%}"])
    if not lines:
        return []
    head = ("training step", "useful TFLOP/s (body, attention, head of masked rows)", "of the measured product speed")
    return [markdown.table(head, lines)]


def _plots(rows: Sequence[dict], out: Path) -> list[str]:
    """Plots of the rows, where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return ["No plots: matplotlib is not installed."]
    from benchmarks import plot

    made = []
    for kind, draw in (("sampler", plot.sampler_rows), ("kernel", plot.kernel_rows)):
        of_kind = [row for row in rows if row["kind"] == kind]
        if of_kind:
            made.append(f"![{kind}]({draw(of_kind, out / f'{kind}.png').name})")
    return made
