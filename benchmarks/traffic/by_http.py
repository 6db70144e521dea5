"""The same requests by HTTP: `dllm serve` with one row and with many, and another server beside it.

A run lasts as long as its arrivals do, and longer where requests come faster than they are answered. So the seconds
that a request takes alone are measured first, and how long each run will take is said before it begins.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import httpx

from benchmarks.traffic.client import Target, ask_at, ask_in_turn
from benchmarks.traffic.outcome import Outcome, summary
from benchmarks.traffic.requests import Request, mixed, poisson
from benchmarks.traffic.server import cpu_seconds, served

# of `dllm serve`, by what the engine's runs call the sampler
SAMPLER_OPTIONS = {"one a step": ["--sampler", "mdlm"], "threshold 0.9": ["--sampler", "threshold"]}
WARM_UP, TOGETHER = 8, 4  # requests, and clients: rows in company run shapes that single ones do not
ALONE = 5  # requests of each kind that are timed alone


class Server(NamedTuple):
    """A server that runs: its name in the results, how it is asked, its process."""

    name: str
    target: Target
    pid: int | None


class Run(NamedTuple):
    """A run to come.

    case: what tells it from others in the results: load, rate and clients.
    ask: lets a server answer it.
    seconds: about as long it takes where requests are answered one at a time.
    """

    case: dict[str, object]
    ask: Callable[[Target], list[Outcome]]
    seconds: float

    def __str__(self) -> str:
        load, clients = self.case["load"], self.case["clients"]
        return f"load {load:g}" if load is not None else f"{clients} clients"


def measure(sampler: str, options: argparse.Namespace, deadline: float) -> list[dict[str, object]]:
    """A result for each server and load, and for each server and number of clients; servers take turns.

    Args:
        sampler: among :data:`benchmarks.traffic.engine.SAMPLERS`.
        options: of the command.
        deadline: by `time.monotonic`; a run that would end later does not begin.

    Raises:
        OSError: a server cannot be started or asked, or refused a request that came alone.
    """
    requests = mixed(options.requests, options.seed)
    with ExitStack() as stack:
        servers, results = list(_servers(stack, sampler, options)), []
        for server in servers:
            ask_in_turn(server.target, requests[:WARM_UP], TOGETHER, options.limit)
        runs = runs_of(requests, _seconds_alone(servers[0], requests, options.limit), options)
        _say(f"{sampler}: {_in_words(runs, len(servers))}")
        for run in runs:
            if time.monotonic() + run.seconds * len(servers) > deadline:
                _say(f"{sampler}: {run} would not end within --budget {options.budget:g} and is left out")
                continue
            for server in servers:
                case = {"where": "http", "sampler": sampler, "policy": server.name} | run.case
                results.append(case | _watched(server, run.ask))
    return results


def runs_of(requests: Sequence[Request], alone: dict[str, float], options: argparse.Namespace) -> list[Run]:
    """The runs of the command, in its order.

    Args:
        requests: of each run.
        alone: seconds that a request of each kind takes alone.
        options: with `loads`, `clients`, `seed` and `limit`.
    """
    work = sum(alone[request.kind] for request in requests)
    runs = []
    for load in options.loads:
        rate = load * len(requests) / work
        arrivals = poisson(len(requests), rate, options.seed)
        case = {"load": load, "clients": None, "rate": round(rate, 3)}
        seconds = seconds_in_turn(arrivals, [alone[request.kind] for request in requests])
        runs.append(Run(case, lambda target, a=arrivals: ask_at(target, requests, a, options.limit), seconds))
    for clients in options.clients:
        case = {"load": None, "clients": clients, "rate": None}
        runs.append(Run(case, lambda target, c=clients: ask_in_turn(target, requests, c, options.limit), work))
    return runs


def seconds_in_turn(arrivals: Sequence[float], seconds: Sequence[float]) -> float:
    """When the last request is answered, if they are answered one at a time and each takes so many seconds.

    Example:
        >>> seconds_in_turn([0.0, 1.0, 10.0], [3.0, 3.0, 3.0])  # the second one waits, the third one does not
        13.0
    """
    end = 0.0
    for arrival, own in zip(arrivals, seconds, strict=True):
        end = max(end, arrival) + own
    return end


def _seconds_alone(server: Server, requests: Sequence[Request], limit: float) -> dict[str, float]:
    """The median time of a request of each kind that is asked alone."""
    kinds = sorted({request.kind for request in requests})
    first = [request for kind in kinds for request in [each for each in requests if each.kind == kind][:ALONE]]
    outcomes = ask_in_turn(server.target, first, 1, limit)
    if any(outcome.refused for outcome in outcomes):
        raise OSError(f"{server.name} refused requests one at a time: {summary(outcomes)['refused']}")
    return {
        kind: statistics.median(outcome.end - outcome.arrival for outcome in outcomes if outcome.kind == kind)
        for kind in kinds
    }


def _in_words(runs: Sequence[Run], servers: int) -> str:
    each = ", ".join(f"{run} {run.seconds:.0f} s" for run in runs)
    total = sum(run.seconds for run in runs) * servers
    return f"{each} for each of {servers} servers; {total:.0f} s in all, about"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _servers(stack: ExitStack, sampler: str, options: argparse.Namespace) -> Iterator[Server]:
    for rows, name in ((1, "one at a time"), (options.rows, f"continuous {options.rows}")):
        own = ["--rows", str(rows), "--max-queue", str(options.requests), "--timeout", str(options.limit)]
        url, pid = stack.enter_context(served([*own, *SAMPLER_OPTIONS[sampler]], threads=options.threads))
        yield Server(name, Target(url, temperature=options.temperature), pid)
    if options.url is not None:
        yield Server(options.name, Target(options.url, options.model, temperature=options.temperature), options.pid)


def _watched(server: Server, ask: Callable[[Target], list[Outcome]]) -> dict[str, object]:
    """The summary of a run, with the processor time of the server's process and what its steps were made of."""
    seconds, steps = _cpu(server), steps_of(server.target)
    outcomes = ask(server.target)
    found = summary(outcomes, None if seconds is None else _cpu(server) - seconds)
    after = steps_of(server.target)
    if steps is not None and after is not None and after[0] > steps[0]:
        found["rows_per_step"] = round((after[1] - steps[1]) / (after[0] - steps[0]), 2)
    return found


def _cpu(server: Server) -> float | None:
    return None if server.pid is None else cpu_seconds(server.pid)


def steps_of(target: Target) -> tuple[float, float] | None:
    """How many steps the server has run, and how many rows they had in all; None where its metrics do not say."""
    try:
        text = httpx.get(f"{target.url}/metrics", headers=target.headers, trust_env=False, timeout=10).text
    except httpx.HTTPError:
        return None
    found = [re.search(rf"^dllm_rows_per_step_{name} (\S+)$", text, re.MULTILINE) for name in ("count", "sum")]
    return None if None in found else (float(found[0][1]), float(found[1][1]))
