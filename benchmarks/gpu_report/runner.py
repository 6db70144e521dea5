"""Run sections one after the other, each in a process of its own, so that a CUDA error in one affects no other."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import machine, report
from benchmarks.gpu_report import section as process
from benchmarks.gpu_report import state, timetable
from benchmarks.gpu_report.items import Item
from benchmarks.gpu_report.sections import Section, module_of
from benchmarks.gpu_report.state import DONE, FAILED, LEFT_OUT, RUNNING, Result, State

LOG = "log.txt"
DRY_SECONDS = 1800.0  # generous: on a busy machine a dry run is slow, and it measures nothing
BUILD = "from dllm_kernels import _extension; _extension.load()"


def due(sections: Sequence[Section], out: Path, *, dry: bool) -> dict[Section, list[Item]]:
    """What every section has to do still, in this mode."""
    sources, found = state.sources(), {}
    for section in sections:
        items = module_of(section.name).items(section.name, dry=dry)
        found[section] = process.due(items, state.in_mode(out, section.name, dry=dry), out, sources=sources)
    return found


def run(
    sections: Sequence[Section], out: Path, deadline: float, *, dry: bool = False, tell: Callable[[str], None] = print
) -> None:
    """Run what is due of these sections until `deadline`, a value of ``time.monotonic()``.

    A section gets its share of the seconds that earlier ones have left (:meth:`timetable.Durations.share`).
    """
    todo, durations, commit = due(sections, out, dry=dry), timetable.Durations(out), machine.commit()
    for section in [section for section, items in todo.items() if not items]:
        tell(f"{section.name}: done before; its rows are kept (--again runs it again)")
        del todo[section]
    with built(meanwhile=not dry and any(section.module == "checks" for section in todo)):
        while todo:
            section, items = next(iter(todo.items()))
            left = deadline - time.monotonic() - timetable.END
            seconds = DRY_SECONDS if dry else durations.share(todo, left)
            del todo[section]
            if not seconds:
                tell(f"{section.name}: no time is left for it")
                continue
            tell(f"{section.name}: {report.count(len(items), 'item')}, at most {seconds:.0f} s")
            ended = run_section(section.name, out, seconds, dry=dry)
            ended.commit = commit
            ended.write(out)
            tell("\n".join([f"{section.name}: {counts(ended)}, {ended.seconds:.0f} s in all", *told(ended)]))


@contextlib.contextmanager
def built(*, meanwhile: bool) -> Iterator[None]:
    """Build the C++ extension in the background, once, before the tests ask for it in many processes."""
    process = subprocess.Popen([sys.executable, "-c", BUILD], cwd=machine.ROOT) if meanwhile else None
    try:
        yield
    finally:
        if process:
            process.terminate()
            process.wait()


def run_section(name: str, out: Path, seconds: float, *, dry: bool) -> State:
    """Run a section in new processes until it has nothing left to do or `seconds` are over; its state.

    A process that ends by itself before its last item, after an illegal access for instance, has failed in that item;
    another one goes on with the next.
    """
    start, since = time.monotonic(), time.time()
    before = state.in_mode(out, name, dry=dry).seconds
    while True:
        begun = time.time()
        status, timed_out = _process(name, out, seconds - (time.monotonic() - start), since, dry=dry)
        ended = state.in_mode(out, name, dry=dry)
        why = f"stopped after {seconds:.0f} s" if timed_out else f"exit status {status}: {last_line(out / name / LOG)}"
        for item, result in ended.having(RUNNING).items():
            kind = LEFT_OUT if timed_out else FAILED
            ended.items[item] = Result(kind, why=[why], sources=result.sources, ended=time.time())
        ended.reason = why if timed_out or status else ""
        ended.seconds = before + time.monotonic() - start
        ended.write(out)
        got_on = any(result.ended >= begun for result in ended.items.values())
        left = seconds - (time.monotonic() - start)
        if timed_out or not status or not got_on or not ended.having(LEFT_OUT) or left < timetable.LEAST:
            return ended


def _process(name: str, out: Path, seconds: float, since: float, *, dry: bool) -> tuple[int, bool]:
    """Run a process of a section; its exit status, and whether it was stopped."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "benchmarks.gpu_report.section", name, str(out), f"--seconds={seconds:.1f}"]
    words += [f"--begun={time.time()}", f"--since={since}", f"--report={os.getpid()}"] + ["--dry"] * dry
    with (folder / LOG).open("a") as log:
        process = subprocess.Popen(
            words,
            cwd=machine.ROOT,
            env=environment(dry=dry),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return 0, True
        finally:
            end(process)
    return process.returncode, False


def environment(*, dry: bool) -> dict[str, str]:
    """The environment of a section. cuDNN's attention comes last, for all programs and tests alike.

    It plans each new shape for tens of milliseconds, which would be measured; TORCH_CUDNN_SDPA_DEPRIORITIZED=0 keeps
    torch's own order. Each row says which was in force.
    """
    found = {process.CUDNN: "1"} | os.environ | {"HF_HUB_OFFLINE": "1"}
    found["PYTHONPATH"] = os.pathsep.join([str(machine.ROOT), os.environ.get("PYTHONPATH", "")])
    if dry:  # on a busy machine threads make tiny models ten times slower
        return found | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    found.pop("TRITON_INTERPRET", None)
    return found


def end(process: subprocess.Popen) -> None:
    """Kill a section and all processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def last_line(log: Path) -> str:
    """The last line of a section's output."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no output"


def counts(ended: State) -> str:
    """How many items are done, failed and left out.

    Example:
        >>> counts(State("kernels", "measured", items={"a": Result("done"), "b": Result("failed")}))
        '1 done, 1 failed'
    """
    left_out = (LEFT_OUT, RUNNING)
    found = {"done": ended.having(DONE), "failed": ended.having(FAILED), "left out": ended.having(*left_out)}
    return ", ".join(f"{len(each)} {name}" for name, each in found.items() if each or name == "done")


def told(ended: State) -> list[str]:
    """The lines to print for a section below its counts."""
    lines = [f"  {ended.reason}"] if ended.reason else []
    return lines + [f"  {name}: {why}" for name, result in ended.having(FAILED).items() for why in result.why]
