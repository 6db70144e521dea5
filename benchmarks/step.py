"""A training step by any program of `losses`: check of the loss, interleaved timing, peak memory, comparison."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import losses, timing
from benchmarks.failures import Result, failures_in
from benchmarks.losses import PROGRAMS, Batch, Program, Truth

Begin = Callable[[str], None]  # announces a part, see report.progress
LEARNING_RATE = 1e-4
PARTS = ("forward", "backward", "optimizer")  # the loss belongs to the forward


class Step:
    """A training step of one model, by any of the programs. Dropout masks are the same for all that have torch's
    dropout, and for all that have dllm's."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: str, seed: int):
        self.model, self.device, self.seed = model, device, seed
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
        half = dtype == "bfloat16"
        self.autocast = functools.partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=half)

    def loss(self, program: Program, batch: Batch) -> Tensor:
        """The forward pass and the loss; the model must be prepared for the program."""
        torch.manual_seed(self.seed)
        with self.autocast():
            return program.loss(self.model, batch)

    def true_loss(self, program: Program, batch: Batch) -> Truth:
        """The loss in float64 and its tolerance, for the check of a program."""
        torch.manual_seed(self.seed)
        with self.autocast():
            return losses.true_loss(self.model, batch, program)

    def __call__(self, program: Program, batch: Batch) -> dict[str, float]:
        """Seconds of a whole step and of its parts, without preparing the model. Gradients are freed at the end."""
        with program.prepared(self.model):
            return self._timed(program, batch)

    def _timed(self, program: Program, batch: Batch) -> dict[str, float]:
        self.optimizer.zero_grad(set_to_none=True)  # in case the last step failed
        timing.synchronize(self.device)
        watch, start = timing.Stopwatch(self.device), time.perf_counter()
        loss = self.loss(program, batch)
        watch.mark("forward")
        loss.backward()
        watch.mark("backward")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        watch.mark("optimizer")
        timing.synchronize(self.device)
        return {"whole": time.perf_counter() - start} | watch.seconds()


class WrongLossError(ValueError):
    """A program computes a wrong loss, so its speed means nothing."""


def check_losses(step: Step, names: list[str], batch: Batch, results: dict[str, Result]) -> dict[str, object]:
    """The loss of every program on one batch, and the float64 loss of each body: the plain one, with torch's dropout,
    and those of dllm. Where a program raises, its result has the reason.

    Raises:
        WrongLossError: a loss differs from the float64 loss by more than the tolerance.
    """
    truths, found = {}, {}
    for name in names:
        program = PROGRAMS[name]
        with failures_in(results, name):
            if program.body not in truths:
                truths[program.body] = step.true_loss(program, batch)
            with program.prepared(step.model):
                found[name] = step.loss(program, batch).item()
    for name, loss in found.items():
        truth = truths[PROGRAMS[name].body]
        if not abs(loss - truth.loss) <= truth.tolerance:
            raise WrongLossError(
                f"{name} must give the loss {truth.loss:.9g} up to {truth.tolerance:.2g}, got {loss:.9g}: not timed"
            )
    return {"truths": {name: truths[PROGRAMS[name].body]._asdict() for name in found}, "programs": found}


def measure(
    step: Step,
    batches: list[Batch],
    repeats: int,
    results: dict[str, Result],
    begin: Begin,
    deadline: float | None = None,
) -> None:
    """Time the steps of all programs that have not failed, interleaved, and write speed and parts into `results`.

    No round after the first starts later than `deadline`, a value of ``time.monotonic()``.
    """
    for name in still_running(results):
        with failures_in(results, name):
            begin(f"{name}: warm-up")
            step(PROGRAMS[name], batches[0])  # also allocates the optimizer's state
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in results}

    def once(name: str, given: itertools.cycle[Batch]) -> None:
        begin(name)
        with failures_in(results, name):
            taken[name].append(step(PROGRAMS[name], next(given)))

    calls = {name: functools.partial(once, name, itertools.cycle(batches)) for name in still_running(results)}
    timing.interleave(calls, repeats, deadline)
    for name in still_running(results):
        results[name] |= rates(taken[name], batches[0].clean.numel())
    for name, result in results.items():
        compare(result, PROGRAMS[name].against, results)


def measure_memory(step: Step, batch: Batch, names: list[str]) -> dict[str, Result]:
    """Peak memory of a step, for every program."""
    peaks: dict[str, Result] = {name: {} for name in names}
    for name in names:
        with failures_in(peaks, name):
            step(PROGRAMS[name], batch)
            with timing.PeakMemory(step.device) as memory:
                step(PROGRAMS[name], batch)
            peaks[name] = {"peak_bytes": memory.bytes, "peak_how": memory.how}
    return peaks


def still_running(results: dict[str, Result]) -> list[str]:
    """The programs that have not failed."""
    return [name for name, result in results.items() if "error" not in result]


def rates(steps: list[dict[str, float]], tokens: int) -> Result:
    """Speed and parts of the counted steps of a program; a step has `tokens` tokens."""
    spread = timing.summary([step["whole"] for step in steps])
    return {
        "seconds": spread,
        "split_seconds": {part: statistics.median(step[part] for step in steps) for part in PARTS},
        "tokens_per_second": tokens / spread["median"],
    }


def compare(result: Result, against: str | None, results: dict[str, Result]) -> None:
    """Add speed-up and share of memory over program `against` to a result, where both were measured."""
    other = results.get(against, {})
    if "tokens_per_second" in result and "tokens_per_second" in other:
        result["against"] = against
        result["speedup"] = result["tokens_per_second"] / other["tokens_per_second"]
        result["share_of_memory"] = result["peak_bytes"] / other["peak_bytes"] if other["peak_bytes"] else None
