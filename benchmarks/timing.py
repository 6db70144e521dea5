"""Timing: interleaved runs, medians with quantiles, parts of a run, cold caches, peak memory.

On a GPU single kernels are timed by CUDA events and whole runs by the host's clock around a synchronised call; on a CPU
everything is timed by the host's clock.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

FLUSH_BYTES = 2**30  # more than any L2
FLUSHES = 2  # half a millisecond at 4 TB/s: the host queues the call meanwhile, so its own time is not measured


def host_seconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call on the host's clock, or on another: that of `time.process_time` runs while the process does,
    which a machine with other work cannot change much."""
    start = clock()
    call()
    return clock() - start


def wall_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, with the device idle before and after it."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, 10 % and 90 % quantiles (linear interpolation) and the number of runs.

    Example:
        >>> summary([3.0, 1.0, 2.0])
        {'median': 2.0, 'p10': 1.2, 'p90': 2.8, 'runs': 3}
    """
    ordered = sorted(seconds)

    def quantile(q: float) -> float:
        below, share = divmod(q * (len(ordered) - 1), 1)
        above = min(int(below) + 1, len(ordered) - 1)
        return round(ordered[int(below)] * (1 - share) + ordered[above] * share, 12)

    return {"median": quantile(0.5), "p10": quantile(0.1), "p90": quantile(0.9), "runs": len(ordered)}


def rounds(repeats: int, deadline: float | None = None) -> Iterator[int]:
    """Numbers of rounds from 0. After the first, none starts later than `deadline`, a value of ``time.monotonic()``."""
    for number in range(repeats):
        if number and deadline is not None and time.monotonic() > deadline:
            return
        yield number


def interleave(
    providers: dict[str, Callable[[], float | None]], repeats: int, deadline: float | None = None
) -> dict[str, list[float]]:
    """Seconds of `repeats` runs of every provider, interleaved: each round starts with the next provider.

    Args:
        providers: functions that run once and return seconds, or None where the run does not count.
        deadline: see :func:`rounds`.
    """
    names, seconds = list(providers), defaultdict(list)
    for round_number in rounds(repeats, deadline):
        turn = round_number % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            taken = providers[name]()
            if taken is not None:
                seconds[name].append(taken)
    return dict(seconds)


class ColdTimer:
    """Seconds of single calls on a cold cache.

    On a GPU a write that fills the L2 cache comes first, and CUDA events time the call. On a CPU nothing is flushed:
    callers rotate their inputs over more memory than the cache holds.
    """

    def __init__(self, device: torch.device):
        self.device = device
        cuda = device.type == "cuda"
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if cuda else None

    def __call__(self, call: Callable[[], object]) -> float:
        if self.flush is None:
            return host_seconds(call)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(FLUSHES):
            self.flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000


def median_seconds(call: Callable[[], object], device: torch.device, repeats: int = 20, warmup: int = 2) -> float:
    """Median seconds of one call, on a cold L2 where `device` is a GPU, after `warmup` calls."""
    timer = ColdTimer(device)
    for _ in range(warmup):
        call()
    return statistics.median(timer(call) for _ in range(repeats))


class Stopwatch:
    """Seconds of the parts of a run: :meth:`mark` ends the part that began at the previous mark.

    On a GPU marks are CUDA events, so no mark waits; :meth:`seconds` reads them all at the end.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[tuple[str, object]] = []
        self.mark("start")

    def mark(self, part: str) -> None:
        """End the part called `part`."""
        if self.device.type == "cuda":
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self.marks.append((part, moment))

    def seconds(self) -> dict[str, float]:
        """Seconds of each part, summed over all its occurrences."""
        synchronize(self.device)
        total: dict[str, float] = defaultdict(float)
        for (_, begin), (part, end) in zip(self.marks, self.marks[1:], strict=False):
            total[part] += self._between(begin, end)
        return dict(total)

    def laps(self, part: str) -> list[float]:
        """Seconds from the start to the first mark called `part`, and from each of these to the next."""
        synchronize(self.device)
        ends = [self.marks[0], *(mark for mark in self.marks if mark[0] == part)]
        return [self._between(begin, end) for (_, begin), (_, end) in itertools.pairwise(ends)]

    def first_lap(self, part: str, began: str) -> float:
        """Seconds to the first mark called `part` from the last one called `began` before it."""
        synchronize(self.device)
        end = next(i for i, (name, _) in enumerate(self.marks) if name == part)
        begin = max(i for i, (name, _) in enumerate(self.marks[:end]) if name == began)
        return self._between(self.marks[begin][1], self.marks[end][1])

    def _between(self, begin: object, end: object) -> float:
        return begin.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - begin


class PeakMemory:
    """Peak bytes that the code inside the `with` block needed beyond those in use before it.

    On a GPU it is the allocator's peak. On Linux the heap's free pages are returned to the system first, then the peak
    of resident memory is reset, and read at the end. `bytes` is None where it cannot be measured, and `how` says why.
    `before`: bytes in use before the block.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.bytes: int | None = None
        self.before: int | None = None
        self.how = "CUDA allocator, peak above the start" if device.type == "cuda" else "peak resident memory growth"

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device.type == "cuda":
            synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            self.before = self._reset_resident_peak()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self.before
        elif self.before is not None:
            self.bytes = max(_resident("VmHWM") - self.before, 0)

    def _reset_resident_peak(self) -> int | None:
        try:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            return _resident("VmRSS")
        except (OSError, AttributeError) as error:
            self.how = f"not measured: this system has no resettable peak of resident memory ({error})"
            return None


def _resident(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024
