"""A stopwatch for the parts of denoising steps."""

from __future__ import annotations

import time

import torch


class Clock:
    """Sums the seconds spent in each part of the steps; does nothing with on=False.

    On a GPU it records events, and only :meth:`seconds` waits for them.

    Example:
        >>> clock = Clock(torch.device("cpu"), on=True)
        >>> clock.start(); clock.lap("body")
        >>> sorted(clock.seconds())
        ['body']
    """

    def __init__(self, device: torch.device, on: bool):
        self.device, self.on = device, on
        self.laps: list[tuple[str, object, object]] = []
        self.last: object = None

    def start(self) -> None:
        """Start a step."""
        if self.on:
            self.last = self._now()

    def lap(self, part: str) -> None:
        """End a part of it, and start the next."""
        if self.on:
            now = self._now()
            self.laps.append((part, self.last, now))
            self.last = now

    def seconds(self) -> dict[str, float]:
        """Total of each part; waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        total: dict[str, float] = {}
        for part, begin, end in self.laps:
            took = begin.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - begin
            total[part] = total.get(part, 0.0) + took
        return total

    def _now(self) -> object:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
