"""Where a row leaves its judge, and whether a near tie explains it.

Two implementations add in different orders, so a choice between two candidates that are a few float32 ulp apart may
fall either way, and all that follows with it. Everything else is a fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tests.reference_samplers.row import Step, Trace, without_repeats
from tests.reference_samplers.rules import FAR, ulps


class Difference(NamedTuple):
    """step: number in trace.steps of the step at which they part; None where no step wrote the positions that differ
    (the prompt, a hole, EOS after the end). kind: "token" (two candidates for a place), "transfer" (which places, how
    many), "filter" (what top-p or top-k keep) or "none". gap: how near the nearest such call was, in float32 ulp."""

    step: int | None
    positions: list[int]
    kind: str
    gap: float
    near_tie: bool


def first_difference(got: Tensor | Sequence[Tensor], trace: Trace, *, ulp: float = 4.0) -> Difference | None:
    """None where they are equal.

    Args:
        got: the row's canvas int64 [L], or its whole history, [L] each: the canvases in order, those of steps that
            committed nothing there or not. With a history the step is the one at which they part. A canvas alone tells
            only the first step that wrote another token: a near tie may lie in any step up to it.
        ulp: what counts as a near tie, in float32 ulp of the numbers compared, of 1 at least.
    """
    if isinstance(got, Tensor) and got.dim() == 1:
        return _of_canvas(got.cpu(), trace, ulp)
    return _of_history([canvas.cpu() for canvas in got], trace, ulp)


def _of_canvas(got: Tensor, trace: Trace, ulp: float) -> Difference | None:
    _check_shape(got, trace)
    positions = _where(got, trace.canvas)
    if not positions:
        return None
    for number, step in enumerate(trace.steps):
        written = [p for p in step.committed if p in positions]
        if written:
            direct = max(_gap_of_token(step, p, int(got[p])) for p in written)
            if direct <= ulp:
                return Difference(number, written, "token", direct, True)
            return _narrowest(number, written, trace.steps[: number + 1], ulp)
    return Difference(None, positions, "none", FAR, False)


def _of_history(got: list[Tensor], trace: Trace, ulp: float) -> Difference | None:
    got, want = without_repeats(got), trace.changes
    for canvas in got:
        _check_shape(canvas, trace)
    if not got or _where(got[0], want[0]):
        return Difference(None, _where(got[0], want[0]) if got else [], "none", FAR, False)
    numbers = [i for i, step in enumerate(trace.steps) if not torch.equal(step.canvas, trace.history[i])]
    for change, number in enumerate(numbers, start=1):
        if change >= len(got):
            return Difference(number, _where(got[-1], want[change]), "none", FAR, False)  # it stopped too early
        positions = _where(got[change], want[change])
        if not positions:
            continue
        step = trace.steps[number]
        both = [p for p in positions if p in step.committed and _written(got, change, p)]
        if both == positions:
            direct = max(_gap_of_token(step, p, int(got[change][p])) for p in positions)
            kind, gap = ("token", direct) if direct <= step.filter_gap else ("filter", step.filter_gap)
            return Difference(number, positions, kind, gap, gap <= ulp)
        # steps that left the canvas as it was belong to the same change: they may have been near to committing
        first = numbers[change - 2] + 1 if change > 1 else 0
        return _narrowest(number, positions, trace.steps[first : number + 1], ulp)
    if len(got) > len(want):
        return Difference(None, _where(got[len(want)], want[-1]), "none", FAR, False)  # it went on after the end
    return None


def _narrowest(number: int, positions: list[int], steps: Sequence[Step], ulp: float) -> Difference:
    calls = [(getattr(step, f"{kind}_gap"), kind) for step in steps for kind in ("transfer", "token", "filter")]
    gap, kind = min(calls, key=lambda call: call[0])
    return Difference(number, positions, kind, gap, gap <= ulp)


def _gap_of_token(step: Step, position: int, token: int) -> float:
    scores = step.score64[position]
    return ulps(float(scores[token]), float(scores[step.proposal[position]]))


def _written(history: list[Tensor], change: int, position: int) -> bool:
    return int(history[change][position]) != int(history[change - 1][position])


def _where(a: Tensor, b: Tensor) -> list[int]:
    return (a != b.cpu()).nonzero().flatten().tolist()


def _check_shape(got: Tensor, trace: Trace) -> None:
    if got.shape != trace.canvas.shape:
        raise ValueError(f"got must have the judge's shape {list(trace.canvas.shape)}, got {list(got.shape)}")
