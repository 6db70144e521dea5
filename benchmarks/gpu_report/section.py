"""Run one section in this process: ``python -m benchmarks.gpu_report.section NAME DIR --seconds S``.

The report starts it. The section writes its rows and its state into DIR/NAME after each item. Where an item leaves the
GPU unusable, the process ends, and the report starts it again for the others.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks import files
from benchmarks.gpu_report import gate, state, timetable
from benchmarks.gpu_report.items import MARGIN, Item, OutOfTime, Session, may_start
from benchmarks.gpu_report.sections import NAMES, module_of
from benchmarks.gpu_report.state import DONE, FAILED, LEFT_OUT, RUNNING, Result, State

WATCHED_EVERY = 0.5  # seconds
LOST_GPU = 3  # exit status
CUDNN = "TORCH_CUDNN_SDPA_DEPRIORITIZED"


def due(items: Sequence[Item], known: State, out: Path, *, sources: str) -> list[Item]:
    """The items that have to run: those not done, and those done on other sources whose rows are not proven."""
    return [item for item in items if not _settled(known.items.get(item.name), out / known.section, sources)]


def _settled(result: Result | None, folder: Path, sources: str) -> bool:
    if result is None or result.status != DONE:
        return False
    rows = [folder / name for name in result.rows]
    if not all(path.exists() for path in rows):
        return False
    return result.sources == sources or (bool(rows) and all(map(_proven, rows)))


def _proven(path: Path) -> bool:
    return files.read_json(path).get("tests", {}).get("state") in (gate.GREEN, gate.NONE)


class Work:
    """The work on a section's items: runs them, several at once where the section allows it, and records them."""

    def __init__(self, session: Session, known: State, sources: str):
        self.session, self.known, self.sources = session, known, sources
        self.checks = gate.results(session.out)
        self.lock = threading.Lock()

    def record(self, name: str, result: Result) -> None:
        with self.lock:
            self.known.items[name] = result
            self.known.write(self.session.out)

    def run(self, items: Sequence[Item], at_once: int, expected: Mapping[str, float]) -> None:
        """Run the items in this order; with one at a time they run in this thread, which torch's settings belong to."""
        for item in items:
            if self.known.items.get(item.name, Result(RUNNING)).status == RUNNING:  # unknown, or killed in it
                self.known.items[item.name] = Result(LEFT_OUT, why=["not started"])
        self.known.write(self.session.out)

        def one(number: int) -> None:
            item = items[number]
            if may_start(number, at_once, self.session.seconds_left, expected[item.name]):
                self.do(item)

        if at_once == 1:
            for number in range(len(items)):
                one(number)
        else:
            with ThreadPoolExecutor(at_once) as pool:
                list(pool.map(one, range(len(items))))

    def do(self, item: Item) -> None:
        """Run an item, stamp the rows that it wrote, and record what became of it."""
        before, start = set(state.row_files(self.session.folder)), time.monotonic()
        self.record(item.name, Result(RUNNING, sources=self.sources))
        status, why = _outcome(item, self.session)
        if broken := _broken_gpu():
            status, why = FAILED, [*why, broken]
        rows = [path for path in state.row_files(self.session.folder) if path not in before]
        for path in rows:
            files.write_json(path, files.read_json(path) | {"sources": self.sources, "attention": attention()})
            gate.stamp(path, self.checks)
        state.drop_replaced(self.session.folder)
        kept = [path.name for path in rows if path.exists()]
        self.record(item.name, Result(status, time.monotonic() - start, why, self.sources, kept, time.time()))
        print(f"{item.name}: {status} {'; '.join(why)}", flush=True)
        if broken:
            raise SystemExit(LOST_GPU)


def _outcome(item: Item, session: Session) -> tuple[str, list[str]]:
    try:
        why = item.run(session)
    except OutOfTime as error:
        return LEFT_OUT, [str(error)]
    except Exception as error:
        traceback.print_exc()
        return FAILED, [f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"]
    return (FAILED if why else DONE), why


def _broken_gpu() -> str:
    """Why the GPU is of no use to this process any more, after an illegal access for instance; empty where it is."""
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            return f"the GPU is lost to this process: {str(error).partition(chr(10))[0]}"
    return ""


def attention() -> dict[str, object]:
    """Which fused attention torch may choose here: the variable that ranks cuDNN's last, and whether it is allowed."""
    return {CUDNN: os.environ.get(CUDNN), "cudnn_sdp_enabled": torch.backends.cuda.cudnn_sdp_enabled()}


def end_with(report: int) -> None:
    """Kill this section and its processes once the report has ended, so that nothing keeps the GPU busy."""
    while os.getppid() == report:
        time.sleep(WATCHED_EVERY)
    os.killpg(0, signal.SIGKILL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the items of a section that are due; 0 where it went through all of them, whatever became of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("section", choices=NAMES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--begun", type=float, default=time.time(), help="when they began, in seconds since 1970")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--since", type=float, default=0.0, help="leave items that ended after this time as they are")
    parser.add_argument("--report", type=int, metavar="PID", help="end with that process, and with all started here")
    options = parser.parse_args(arguments)
    if options.report:
        threading.Thread(target=end_with, args=(options.report,), daemon=True).start()
    left = options.begun + (1 - MARGIN) * options.seconds - time.time()  # torch's import took some of them
    session = Session(options.section, options.out, time.monotonic() + left, options.dry)
    module, sources = module_of(options.section), state.sources()
    known = state.in_mode(options.out, options.section, dry=options.dry)
    todo = due(module.items(options.section, dry=options.dry), known, options.out, sources=sources)
    ended = {name: result.ended for name, result in known.items.items()}
    todo = [item for item in todo if not 0 < options.since <= ended.get(item.name, 0.0)]
    if module.AT_ONCE > 1:  # what was red before is what a fix was for
        todo.sort(key=lambda item: item.name not in known.having(FAILED))
    if not options.dry:
        module.prepare()
    known.startup = time.time() - options.begun
    Work(session, known, sources).run(todo, module.AT_ONCE, timetable.Durations(options.out).of(options.section, todo))
    return 0


if __name__ == "__main__":
    sys.exit(main())
