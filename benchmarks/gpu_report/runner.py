"""Run sections one after the other, each in a separate process, so that a CUDA error in one affects no other."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.gpu_report import state
from benchmarks.gpu_report.sections import SECONDS, Section
from benchmarks.gpu_report.state import State

LOG = "log.txt"
TOLD = 300  # most characters printed of a failed section's last line
DRY_SECONDS = 1800  # generous: on a busy machine a dry run is slow, and it measures nothing
NOTES = ("left_out", "withheld", "failures")


def run(
    sections: Sequence[Section],
    out: Path,
    *,
    dry: bool = False,
    quick: bool = False,
    again: bool = False,
    commit: str | None = None,
    tell: Callable[[str], None] = print,
) -> list[State]:
    """Run the sections that are not done in this mode yet; returns the state of all of them.

    A section may also use the seconds that finished sections left over and those of sections that were not asked for.
    So a section that was stopped gets more time when the same command is repeated, and most of it when asked for alone.

    Args:
        again: also run the sections that are done.
        commit: the commit of the code, stored in each state.
    """
    mode, states = ("dry" if dry else "measured"), []
    done = (
        {}
        if again
        else {name: before for name, before in _ended(sections, out) if before.stands_for(mode, quick=quick)}
    )
    waiting = sum(section.limit(quick=quick) for section in sections if section.name not in done)
    spare = 0.0 if dry else SECONDS / (2 if quick else 1) - waiting
    for section in sections:
        if before := done.get(section.name):
            tell(f"{section.name}: done before, {before.seconds:.0f} s; its rows are kept (--again runs it again)")
            states.append(before)
            continue
        share = DRY_SECONDS if dry else section.limit(quick=quick)
        tell(f"{section.name}: starts, at most {share + spare:.0f} s")
        ended = run_section(section, out, share + spare, dry=dry, quick=quick)
        ended.commit = commit
        ended.write(out)
        spare = 0.0 if dry else max(0.0, share + spare - ended.seconds)
        tell("\n".join([f"{section.name}: {ended.status}, {ended.seconds:.0f} s", *told(ended)]))
        states.append(ended)
    return states


def _ended(sections: Sequence[Section], out: Path) -> Iterator[tuple[str, State]]:
    for section in sections:
        if before := state.read(out, section.name):
            yield section.name, before


def run_section(section: Section, out: Path, seconds: float, *, dry: bool, quick: bool) -> State:
    """Run one section in an empty folder and a new process, stopped after `seconds`; returns its state."""
    folder = out / section.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = [sys.executable, "-m", "benchmarks.gpu_report.section", section.name, str(out), f"--seconds={seconds:.1f}"]
    words += [f"--report={os.getpid()}"] + ["--dry"] * dry + ["--quick"] * quick
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    environment |= {"HF_HUB_OFFLINE": "1"}
    if dry:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment |= {"OMP_NUM_THREADS": "1"}  # on a busy machine threads make tiny models ten times slower
    else:
        environment.pop("TRITON_INTERPRET", None)
    start, reason = time.monotonic(), ""
    with (folder / LOG).open("w") as log:
        process = subprocess.Popen(
            words, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            reason = f"stopped after {seconds:.0f} s"
        finally:
            end(process)
    notes = notes_of(folder / LOG)
    ended = State(section.name, "done", "dry" if dry else "measured", quick, time.monotonic() - start)
    if notes is None:
        ended.status, ended.reason = "failed", reason or f"exit status {process.returncode}: {last_line(folder / LOG)}"
        return ended
    for name in NOTES:
        setattr(ended, name, notes[name])
    if ended.failures:
        ended.status = "failed"
    elif ended.withheld:
        ended.status = "withheld"
    return ended


def end(process: subprocess.Popen) -> None:
    """Kill a section and all processes that it started."""
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        pass
    process.wait()


def notes_of(log: Path) -> dict[str, list[str]] | None:
    """The notes that a section printed at its end; None where it has none. Libraries may print lines after them."""
    for line in reversed(log.read_text(errors="replace").splitlines()):
        if line.startswith("{"):
            with contextlib.suppress(json.JSONDecodeError):
                notes = json.loads(line)
                if set(notes) == set(NOTES):
                    return notes
    return None


def last_line(log: Path) -> str:
    """The last line of a section's output."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


def told(ended: State) -> list[str]:
    """The lines to print for a section below its status: the reason and the notes."""
    lines = [f"  {ended.reason[:TOLD]}"] if ended.reason else []
    for name in NOTES:
        lines += [f"  {name.replace('_', ' ')}: {note}" for note in getattr(ended, name)]
    return lines
