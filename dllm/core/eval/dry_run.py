"""The dry run: what an evaluation will take, estimated from a few of its requests."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from dllm.core.eval.jobs import Job
from dllm.core.eval.plan import Plan
from dllm.core.eval.progress import duration
from dllm.core.eval.run import Item, unanswered
from dllm.core.eval.scores import columns

REQUESTS = 20


class Estimate(NamedTuple):
    """What a task will take.

    task: its name.
    requests: all of this process.
    answered: those that the journal has.
    forwards: of the others, rows of the model.
    seconds: for them.
    """

    task: str
    requests: int
    answered: int
    forwards: int
    seconds: float


class DryRun(NamedTuple):
    """Estimates of the tasks, what was run for them, and the memory that this took, in bytes."""

    estimates: list[Estimate]
    tried: int
    seconds: float
    memory: int


def dry_run(items: Sequence[Item], plans: Mapping[str, Plan], requests: int = REQUESTS) -> DryRun:
    """Run a few requests, and estimate from them what all will take.

    The requests are spread evenly over what they are estimated to cost, the dearest among them, and run in the batches
    of the run. Their answers are kept in the journal. Work is counted in token positions; the time of a position is
    measured for each type of request and each setting.
    """
    left = {item.task: unanswered(item, plans[item.task]) for item in items if plans[item.task].error is None}
    pools: dict[tuple[int, str], list[Job]] = {}
    lms = {}
    for item in items:
        for kind, jobs in left.get(item.task, {}).items():
            pools.setdefault((id(item.lm), kind), []).extend(jobs)
            lms[id(item.lm)] = item.lm
    sample = {id(job) for job in _spread([job for jobs in pools.values() for job in jobs], requests)}
    rates, ratios, tried, started = {}, {}, 0, time.perf_counter()
    for (number, kind), jobs in pools.items():
        if not jobs:
            continue
        lm, chosen = lms[number], [job for job in jobs if id(job) in sample] or _spread(jobs, 1)
        lm.answers(kind, [min(jobs, key=lambda job: job.work.positions)], shown=False)  # warms up
        before, began = _forwards(lm), time.perf_counter()
        lm.answers(kind, chosen, shown=False)
        positions = sum(job.work.positions for job in chosen)
        rates[number, kind] = (time.perf_counter() - began) / positions
        ratios[number, kind] = (_forwards(lm) - before) / max(1, sum(job.work.forwards for job in chosen))
        tried += len(chosen)
    seconds = time.perf_counter() - started
    estimates = [
        _estimate(item, plans[item.task], left[item.task], rates, ratios) for item in items if item.task in left
    ]
    return DryRun(estimates, tried, seconds, _memory(items))


def report(found: DryRun, world_size: int) -> str:
    """The estimates as text."""
    head = ("task", "requests", "answered", "forwards", "time")
    rows = [
        (one.task, f"{one.requests:,}", f"{one.answered:,}", f"{one.forwards:,}", duration(one.seconds))
        for one in found.estimates
    ]
    whole = found.estimates
    rows.append(
        (
            "in all",
            f"{sum(one.requests for one in whole):,}",
            f"{sum(one.answered for one in whole):,}",
            f"{sum(one.forwards for one in whole):,}",
            duration(sum(one.seconds for one in whole)),
        )
    )
    lines = columns((head, *rows))
    share = f", for the share of one of {world_size} processes" if world_size > 1 else ""
    lines += [
        "",
        f"estimated from {found.tried} requests in {duration(found.seconds)}{share}",
        f"memory so far  {found.memory / 2**30:.2f} GiB",
    ]
    return "\n".join(lines)


def _spread(jobs: Sequence[Job], count: int) -> list[Job]:
    """So many jobs, spread evenly over their work, the largest among them."""
    ordered = sorted(jobs, key=lambda job: -job.work.positions)
    count = min(count, len(ordered))
    return [ordered[number * len(ordered) // count] for number in range(count)]


def _estimate(
    item: Item,
    plan: Plan,
    left: Mapping[str, Sequence[Job]],
    rates: Mapping[tuple[int, str], float],
    ratios: Mapping[tuple[int, str], float],
) -> Estimate:
    requests, open_requests = sum(map(len, plan.jobs.values())), sum(map(len, left.values()))
    forwards = seconds = 0.0
    for kind, jobs in left.items():
        if jobs:
            key = (id(item.lm), kind)
            forwards += ratios[key] * sum(job.work.forwards for job in jobs)
            seconds += rates[key] * sum(job.work.positions for job in jobs)
    return Estimate(item.task, requests, requests - open_requests, round(forwards), seconds)


def _forwards(lm: Any) -> int:
    return sum(usage.forwards for usage in lm.usage.values())


def _memory(items: Sequence[Item]) -> int:
    """The most memory so far: of the GPU if the model is on one, else of the process."""
    if items and items[0].lm.device.type == "cuda":
        return torch.cuda.max_memory_allocated(items[0].lm.device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
